r"""What does a large batch in pieces (`chunk`) take of memory and time, beside the plain large batch and a small one?

SimCLR at 32 px on a small ResNet without batch norm. Each case is a process of its own on one thread; the peak is the
highest resident memory that the system saw (VmHWM) during the steps, less what was there before, and `per_image` the
best step's time for an image, both of training alone (the views are made, but of images that are in memory).

    OMP_NUM_THREADS=1 python nbs/results/gradcache.py
"""
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from measured import *

def measure(bs, chunk, steps, nf):
    "In a process of its own"
    from fastai.vision.all import Callback, DataLoaders, TensorImage, nn, set_seed, torch
    from fastai_contrastive.all import SimCLR, contrastive_learner, create_encoder
    class Watch(Callback):
        order,took = 1000,[]
        def before_batch(self): self.start = time.perf_counter()
        def after_batch(self):
            if self.training: self.took.append(time.perf_counter()-self.start)
    def block(a, b, stride): return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(4, b), nn.ReLU()]
    set_seed(0)
    body = nn.Sequential(*block(3, nf, 1), *block(nf, nf, 1), *block(nf, 2*nf, 2), *block(2*nf, 4*nf, 2))
    ds = [(TensorImage(o),) for o in torch.rand(bs, 3, 32, 32)]
    dls = DataLoaders.from_dsets(ds, ds[:2], bs=bs, drop_last=False, device='cpu', num_workers=0)
    watch = Watch()
    learn = contrastive_learner(dls, create_encoder(body), SimCLR(), chunk=chunk, cbs=watch)
    was = forget_peak()
    with learn.no_bar(), learn.no_logging(): learn.fit(steps, 1e-3)
    print(dict(peak=resident('VmHWM')-was, seconds=min(watch.took)))

@call_parse
def main(
    bs:int=4096, # The large batch
    chunk:int=64, # Images in the network at a time
    fits:int=1024, # The largest batch that is tried at once
    steps:int=2, # Steps of each case
    nf:int=32, # Channels of the first layers
    out:str='nbs/results/gradcache.json', # Where the row goes
    one:str='', # For its own use
):
    "Measure batches in pieces and at once"
    if one: return measure(*eval(one))
    from shared import command, write_row
    from fastai_contrastive.recipes import provenance
    rows = {}
    for n,c in ((chunk,None),(fits,None),(fits,chunk),(bs,chunk)):
        o = in_process(__file__, n, c, steps, nf)
        name = f'{n} at once' if c is None else f'{n} in pieces of {c}'
        rows[name] = dict(peak_mb=round(o['peak']/2**20), per_image_ms=round(1000*o['seconds']/n, 3))
        print(name, rows[name])
    write_row(dict(bs=bs, chunk=chunk, nf=nf, cases=rows, **provenance(), command=command()), Path(out))
