r"""What do many more epochs bring? SimCLR, rotation beside it, and lightly's SimCLR in the same setting.

The setting of `imagenette.py` (Imagenette's 9,469 training images at 64 pixels, batches of 128, a network of 0.3M
weights) for `--epochs` epochs, one seed. Along the way kNN by held-out training labels (a fifth of them, judged by the
rest), every ten epochs; `val/` is looked at once, at the end. Each run goes on where it was; two copies share the work:

    python nbs/results/longer.py                                    # simclr and rotation+simclr, 200 epochs
    python nbs/results/longer.py --only lightly-simclr --epochs 40  # the peer: slow, its views are made one by one
    python nbs/results/longer.py --table

lightly is 1.6 (`pip install -e '.[bench]'`): its transform, head and loss on the same files, encoder, optimizer,
schedule and steps.
"""
from fastcore.script import *
from shared import *
from nine import size, bs, lr, wd, arch, arch_args, train_lightly
from fastai_contrastive.recipes import provenance
from fastai_contrastive.report.folder import ReportImages
from fastai_contrastive.report.runs import Quiet, share_units, read_units, linear_of

names = 'simclr','rotation+simclr'

class Run(Named, namedtuple('Run', 'row epochs seed')):
    "A row for so many epochs"

class Job:
    "What a `Run` is carried out with"
    def __init__(self, out, num_workers=0):
        self.weights = Path(out)/'weights'
        self.weights.mkdir(parents=True, exist_ok=True)
        self.images = ReportImages(small('imagenette', 80), size, cache=True, num_workers=num_workers)
        self.num_workers = num_workers

    def cbs(self, encoder=None):
        held = self.images.labelled(hold_out=.2, augment=False, bs=bs)
        return [ChannelsLast(), Quiet(), StopOnDivergence(), KNNMonitor(held, every=10, encoder=encoder)]

    def ours(self, u):
        task,_,objective = u.row.rpartition('+')
        r = Recipe('imagenette', size, bs, arch, arch_args, task or None, objective=objective, epochs=u.epochs, lr=lr,
            wd=wd, seed=u.seed)
        set_seed(u.seed)
        row = pretrain(r, self.weights/u.name, self.images.without_labels(bs), self.cbs(), resume=True)[1]
        return load_encoder(self.weights/f'{u.name}.safetensors'),{k:row[k] for k in ('steps','columns','values')}

    def lightly(self, u):
        "The same with lightly's parts"
        cbs = [*self.cbs(lambda m: m.encoder), Resumable(self.weights/u.name)]
        enc,learn = train_lightly(u.row, self.images, u.seed, u.epochs, cbs, self.num_workers)
        values = [[round(float(v), 5) for v in o] for o in learn.recorder.values]
        return enc,dict(steps=learn.train_iter, columns=list(learn.recorder.metric_names)[1:-1], values=values)

    def __call__(self, u):
        enc,row = (self.lightly if u.row.startswith('lightly') else self.ours)(u)
        fs = split_features(enc, self.images.labelled(bs=bs, augment=False), pbar=False)
        row.update(knn=knn_accuracy(fs, pbar=False), linear=linear_of(fs, 1., u.seed))
        print(u.name, row['knn'], row['linear'], flush=True)
        return {**row, **provenance(), 'command':command()}

def along(row):
    "kNN on held-out training images by epoch"
    i = row['columns'].index('knn_acc')
    return {k+1:o[i] for k,o in enumerate(row['values']) if o[i] is not None and o[i]==o[i]}

def table(out):
    "A line a run: what `val/` says at the end, and the held-out training images along the way"
    rows = sorted(read_units(Path(out)/'rows'), key=lambda o: (o['row'],o['epochs']))
    at = sorted({k for o in rows for k in along(o) if k in (10,20,40,60,100,150,200)})
    lines = ['| trained on | epochs | kNN | linear | '+' | '.join(f'after {k}' for k in at)+' |']
    lines.append('| --- '*(len(at)+4)+'|')
    for o in rows:
        seen = [f'{100*along(o)[k]:.1f}' if k in along(o) else '' for k in at]
        cells = o['row'],str(o['epochs']),f"{100*o['knn']:.1f}",f"{100*o['linear']:.1f}"
        lines.append('| '+' | '.join([*cells, *seen])+' |')
    return '\n'.join(lines)

@call_parse
def main(
    epochs:int=200, # Of pretraining
    only:str='', # Names of rows to run, separated by commas
    seed:int=0, # Of everything random
    num_workers:int=0, # Loading processes
    out:str='nbs/results/longer-imagenette-64px', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing, and print the table."
    make = globals()['table']
    if not table:
        todo = [Run(o, epochs, seed) for o in (only.split(',') if only else names)]
        check_writable(Path(out)/'rows'/'x')
        share_units(todo, Path(out)/'rows', lambda u: [], Job(out, num_workers))
    print(make(out))
