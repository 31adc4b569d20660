"""`nbdev-test`, from the random state that `PAGE_SEED` names: the same for each page and each time, as for every test.

A page that asserts something of random numbers may be wrong once in a hundred times. To look for such pages, run all of
them with another number: `PAGE_SEED=1 pytest tests/test_notebooks.py`."""
import os, random, sys
import numpy as np, torch
from nbdev.test import nbdev_test

for f in (random.seed,np.random.seed,torch.manual_seed): f(int(os.environ.get('PAGE_SEED', 0)))
sys.exit(nbdev_test())
