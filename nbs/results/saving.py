r"""What does it cost to keep a run? A ResNet-18 with SimCLR and Adam, saved again and again between steps of training.

A state is the weights, Adam's two means of each, the heads with theirs, and what else a run remembers. It is written
beside its place, flushed to the disk and renamed, with a checksum. The share is of training at the interval of ten
minutes; steps of training go on between the saves, so that each of them is paid for as in a run.

    python nbs/results/saving.py
"""
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from shared import *
from fastai_contrastive.resumable import Resumable
from fastai_contrastive.recipes import provenance

class Often(Callback):
    "Save after every step, from the third on; how long each took"
    order = Resumable.order+1
    def after_batch(self):
        if not self.training or self.train_iter<3: return
        start = time.time()
        self.learn.resumable.save(self.epoch, self.iter+1)
        self.took = [*getattr(self, 'took', []), time.time()-start]

@call_parse
def main(
    n:int=8, # Saves
    out:str='nbs/results/saving.json', # Where the row goes
):
    "Time `n` saves."
    set_seed(0)
    dls = synth_dls(size=64, bs=32, n=32*(n+3), labelled=False)
    with tempfile.TemporaryDirectory(dir='.') as d:
        keep,often = Resumable(Path(d)/'run', say=noop),Often()
        learn = contrastive_learner(dls, 'resnet18', SimCLR(), cbs=[keep, often])
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
        mb = sum(o.stat().st_size for o in (Path(d)/'run').glob(f'{keep.store.files[-1].name}.*'))/2**20
    took = sorted(often.took)
    row = dict(arch='resnet18', opt='Adam', saves=len(took), median=round(took[len(took)//2], 3),
        longest=round(took[-1], 3), mb=round(mb, 1), share_of_ten_minutes=round(took[len(took)//2]/600, 6),
        **provenance(), command=command())
    write_row(row, Path(out))
    print({k:row[k] for k in ('saves','median','longest','mb','share_of_ten_minutes')})
