import os, tempfile, warnings
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')
if 'MPLCONFIGDIR' not in os.environ and not os.access(Path.home(), os.W_OK): os.environ['MPLCONFIGDIR'] = tempfile.mkdtemp()

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest, torch
from fastai.vision.all import fastai_path, set_seed
from fastai_contrastive.data import synth_images

# Processes that run tests side by side (`make test`) share the cores
share = (os.cpu_count() or 1)//int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 0)) or max(1, share))

def pytest_collection_modifyitems(items):
    "Each process begins with its share of the pages, which are the longest, so that none is left for the end"
    n = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
    pages,rest = [],[]
    for o in items: (pages if 'test_notebooks.py' in o.nodeid else rest).append(o)
    cuts = [len(rest)*i//n for i in range(n+1)]
    items[:] = [o for i in range(n) for o in pages[i::n]+rest[cuts[i]:cuts[i+1]]]

@pytest.fixture(autouse=True)
def seed():
    "Every test starts from the same random state"
    set_seed(0)

@pytest.fixture
def strict(tmp_path, monkeypatch):
    "In a folder of its own, where a warning is an error; for a whole file: `pytestmark = pytest.mark.usefixtures('strict')`"
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        yield
    plt.close('all')

@pytest.fixture(scope='session')
def synth(tmp_path_factory):
    "A small drawn data set: 10 classes, 4 training and 3 validation images each, 20 without a label, 32 px"
    return synth_images(tmp_path_factory.mktemp('synth')/'shapes', n_train=4, n_unsup=20, n_valid=3, size=32)

@pytest.fixture(scope='session')
def real():
    "`real(name)`: folder of a real data set in fastai's data folder; skips the test where it is not there"
    def _real(name):
        path = fastai_path('data')/name
        if not path.is_dir(): pytest.skip(f'{name} is not in {path.parent}')
        return path
    return _real

def pytest_terminal_summary(terminalreporter):
    """How many pairs of a task and a term were tried (`test_any.py`), and why some were refused; how many kinds of bad
    input (`test_bad_input.py`), and what was done with them"""
    seen,bad = {},{}
    for r in terminalreporter.stats.get('passed', []):
        for k,v in r.user_properties:
            if k=='bad input': bad.setdefault(v[0], []).append(v[1])
            if k!='pairs': continue
            for why,n in v[1:]: seen.setdefault(v[0], {}).setdefault(why, []).append(n)
    for enc,o in seen.items():
        terminalreporter.write_line(f'pairs on {enc}: '+', '.join(f'{k} {sum(v)}' for k,v in sorted(o.items(), key=lambda o: o[0]!='ran')))
    if bad:
        n = {o:sum(v.count(o) for v in bad.values()) for o in ('used','refused')}
        terminalreporter.write_line(f"bad input: {sum(n.values())} cases, {n['used']} used, {n['refused']} refused by name")
        terminalreporter.write_line(', '.join(f'{k} {len(v)}' for k,v in sorted(bad.items())))
