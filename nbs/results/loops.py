r"""Images a second of whole training, from JPEG files: this library's beside lightly's loop and kornia in fastai.

SimCLR with torchvision's ResNet-18 on Imagenette, 64 pixels, batch 64: files opened, views made, both passes, loss,
backward, optimizer. Each as its users run it. *lightly*: `LightlyDataset`, `SimCLRTransform`, a plain loop with
`NTXentLoss` and SGD, as many loading processes as there are cores. *kornia*: a fastai `Learner` whose callback makes
both views of a batch (from this library's loader) by kornia's augmentations, and lightly's loss. *ours*:
`contrastive_learner` as the command makes it, with `PassPrecision('auto')`, and once more with decoded pixels
(`cache=`); *plain* is ours in float32 without channels-last or cache. Blocks of `n` steps take turns in one process;
the ratio of each round counts, and its median is kept. The first step of a block, in which loading processes start, is
not timed.

    pip install -e '.[bench]'
    python nbs/results/loops.py
"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from statistics import median
from fastcore.script import *
from shared import *
from views import processor, versions, width
from torchvision.models import resnet18
from fastai_contrastive.bench import StepClock, _Arrival
from fastai_contrastive.recipes import provenance

class Net(nn.Module):
    "lightly's: backbone and projection head"
    def __init__(self):
        from lightly.models.modules import SimCLRProjectionHead
        super().__init__()
        self.body = nn.Sequential(*list(resnet18().children())[:-1])
        self.head = SimCLRProjectionHead(512, 512, 128)
    def forward(self, x): return self.head(self.body(x).flatten(1))

def lightly_loop(path, a):
    "A function that makes `n` steps and gives their seconds"
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    dl = torch.utils.data.DataLoader(LightlyDataset(str(path/'train'), transform=SimCLRTransform(input_size=a.size)),
        batch_size=a.bs, shuffle=True, drop_last=True, num_workers=a.num_workers)
    m,loss = Net(),NTXentLoss(temperature=.5)
    opt = torch.optim.SGD(m.parameters(), lr=.06)
    def _block():
        for i,((x0,x1),*_) in enumerate(dl):
            l = loss(m(x0), m(x1))
            l.backward()
            opt.step()
            opt.zero_grad()
            if i==0: start = time.perf_counter()
            if i==a.n: return time.perf_counter()-start
    return _block

class KorniaViews(Callback):
    "Both views of a batch, and the loss of them"
    order = 9
    def __init__(self, size):
        import kornia.augmentation as K
        self.tfm = K.AugmentationSequential(K.RandomResizedCrop((size,size), scale=(.08,1.)), K.RandomHorizontalFlip(),
            K.ColorJitter(.8, .8, .8, .2, p=.8), K.RandomGrayscale(p=.2),
            K.RandomGaussianBlur((width(size),)*2, (.1,2.), p=.5), data_keys=['input'])
    def before_batch(self):
        x = self.x.as_subclass(Tensor)
        self.learn.xb = (torch.cat([self.tfm(x), self.tfm(x)]),)
        self.learn.yb = (x,) # Without a target fastai computes no loss

def timed(learn, n):
    clock = StepClock(n)
    def _block():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[clock, _Arrival(clock)])
        return clock.seconds
    return _block

def of_kornia(path, a):
    from lightly.loss import NTXentLoss
    loss = NTXentLoss(temperature=.5)
    dls = unlabeled_dls(path, a.size, a.bs, folders='train', num_workers=a.num_workers, norm=None)
    return timed(Learner(dls, Net(), loss_func=lambda p,*_: loss(*p.chunk(2)), cbs=KorniaViews(a.size)), a.n)

def ours(path, a, cache=False, cbs=None):
    dls = unlabeled_dls(path, a.size, a.bs, folders='train', num_workers=0 if cache else a.num_workers, cache=cache)
    return timed(contrastive_learner(dls, 'resnet18', SimCLR(), cbs=cbs), a.n)

loops = dict(lightly=lightly_loop, kornia=of_kornia, plain=ours,
    ours=lambda path,a: ours(path, a, cbs=PassPrecision('auto', noop)),
    cached=lambda path,a: ours(path, a, a.cache, PassPrecision('auto', noop)))

@call_parse
def main(
    size:int=64, # Pixels
    bs:int=64, # Images a batch
    n:int=8, # Steps a block
    repeats:int=5, # Rounds
    num_workers:int=2, # Loading processes, of all but the cached
    cache:str='', # Folder of the decoded pixels; that of fastai's data if empty
    only:str='', # Names of loops, separated by commas
    out:str='nbs/results/loops.json', # Where the row goes
):
    "Time whole training loops in turns."
    check_writable(out)
    set_seed(0)
    a = SimpleNamespace(size=size, bs=bs, n=n, num_workers=num_workers, cache=cache or True)
    path = data_path('imagenette', size)
    fs = {k:loops[k](path, a) for k in (only.split(',') if only else loops)}
    for f in fs.values(): f()
    rounds = []
    for i in range(repeats):
        rounds.append({k:f() for k,f in fs.items()})
        print({k:round(n*bs/v, 1) for k,v in rounds[-1].items()}, flush=True)
    speeds = {k:round(n*bs/median(r[k] for r in rounds), 1) for k in fs}
    times_of = lambda k: {o:round(median(r[o]/r[k] for r in rounds), 2) for o in fs if o!=k}
    times = {k:times_of(k) for k in ('ours','cached') if k in fs}
    write_row(dict(kind='loops', data='imagenette', arch='resnet18', size=size, bs=bs, n=n, repeats=repeats,
        num_workers=num_workers, images_per_second=speeds, times=times, rounds=rounds, **versions(), **provenance(),
        processor=processor(), load=[round(o, 1) for o in os.getloadavg()], command=command()), out)
    print(speeds, times, sep='\n')
