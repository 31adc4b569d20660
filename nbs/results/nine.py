r"""The nine objectives that people ask for most, alone, where the steps are enough to tell; with lightly's beside them.

The setting of `imagenette.py`: Imagenette's 9,469 training images at 64 pixels, batches of 128, a network of 0.3M
weights. The papers' momenta, widths, queues and numbers of prototypes are meant for a million images, so each objective
has a few settings to choose from: each is trained for `--look` epochs and judged by the neighbours of held-out training
images (a fifth). The best is trained for `--epochs` epochs and judged on `val/`, once. `val/` chooses nothing.

    python nbs/results/nine.py              # what is missing; two copies share the work
    python nbs/results/nine.py --table
    python nbs/results/nine.py --peers      # lightly's, of four; needs pip install -e '.[bench]'

A peer has lightly 1.6's transform, heads (as wide as ours) and loss, with the settings chosen for ours.
"""
from fastcore.script import *
from shared import *
import objectives as peers
from fastai_contrastive.recipes import provenance
from fastai_contrastive.report.folder import ReportImages
from fastai_contrastive.report.runs import Quiet, share_units, read_units, linear_of

size,bs,lr,wd = 64,128,4e-3,1e-2
arch,arch_args = 'xresnet_narrow',dict(blocks=1)
small_mlp = dict(dim=256, hidden=512)
candidates = dict(
    simclr=[dict(), dict(temp=.1), dict(temp=.5)],
    moco=[dict(momentum=.99, queue_size=2048, symmetric=True), dict(momentum=.95, queue_size=2048, symmetric=True),
        dict(momentum=.9, queue_size=512, symmetric=True)],
    byol=[dict(**small_mlp, pred_hidden=512, momentum=m, momentum_end=e) for m,e in ((.99,1.),(.95,1.),(.9,.99))],
    swav=[dict(n_prototypes=n, queue_size=0, eps=e) for n,e in ((512,.05),(512,.02),(128,.05))],
    barlowtwins=[dict(dim=512), dict(dim=512, lambd=.02), dict(dim=128, lambd=.02)],
    vicreg=[dict(dim=512), dict(dim=512, inv=10.), dict(dim=256, cov=4.)],
    dino=[dict(n_prototypes=512, hidden=512, bottleneck=128, bn=True, momentum=m, teacher_temp=.04, warmup_temp=.02,
        balance=b) for m,b in ((.99,'sinkhorn'),(.95,'sinkhorn'),(.99,'center'))],
    simsiam=[dict(**small_mlp, pred_hidden=p) for p in (64,128)]+[dict(dim=512, hidden=512, pred_hidden=128)],
    lejepa=[dict(dim=16, hidden=512), dict(dim=64, hidden=512), dict(dim=64, hidden=512, lambd=.02)])
lightly = 'simclr','byol','barlowtwins','simsiam'

class Run(Named, namedtuple('Run', 'what objective k seed', defaults=(None,)*2)):
    "look at candidate k, or train the best with a seed"

def units(a):
    "All there is to do: the looks first, round by round"
    names = a.only.split(',') if a.only else list(candidates)
    if a.peers: return [Run('peer', o, None, s) for s in range(a.seeds) for o in lightly if o in names]
    looks = [o for k in range(3) for n in names for o in looks_of(n)[k:k+1]]
    return looks + [Run('train', o, None, s) for s in range(a.seeds) for o in names]

def looks_of(o): return [Run('look', o, k) for k in range(len(candidates[o]))]
def needs(u): return [] if u.what=='look' else looks_of(u.objective)

def train_lightly(name, images, seed, epochs, cbs, num_workers=0):
    "Encoder and learner of `lightly-…`, in this setting"
    set_seed(seed)
    enc = create_encoder(arch, **arch_args)
    a = SimpleNamespace(size=size, bs=bs, wd=wd, num_workers=num_workers)
    learn = peers.lightly_learner(name, images.without_labels(bs), enc, a)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return enc,learn

class Job:
    "What a `Run` is carried out with"
    def __init__(self, a):
        self.a,self.out = a,Path(a.out)
        (self.out/'weights').mkdir(parents=True, exist_ok=True)
        self.images = ReportImages(small('imagenette', 80), size, cache=True, num_workers=a.num_workers)

    def best(self, o):
        "The settings that held-out training images chose, and what each had"
        looks = {u.k:json.loads((self.out/'rows'/f'{u.name}.json').read_text())['knn'] for u in looks_of(o)}
        return candidates[o][max(looks, key=looks.get)],looks

    def train(self, u, args, epochs):
        "Encoder and row"
        seed = u.seed or 0
        r = Recipe('imagenette', size, bs, arch, arch_args, objective=u.objective, objective_args=args, epochs=epochs,
            lr=lr, wd=wd, seed=seed)
        set_seed(seed)
        out,cbs = self.out/'weights'/u.name,[ChannelsLast(), Quiet(), StopOnDivergence()]
        row = pretrain(r, out, self.images.without_labels(bs), cbs, resume=True)[1]
        return load_encoder(out.with_name(f'{u.name}.safetensors')),dict(steps=row['steps'], values=row['values'])

    def peer(self, u):
        peers.settings[u.objective] = args = self.best(u.objective)[0]
        cbs = [ChannelsLast(), StopOnDivergence(), Resumable(self.out/'weights'/u.name)]
        name = f'lightly-{u.objective}'
        enc,learn = train_lightly(name, self.images, u.seed, self.a.epochs, cbs, self.a.num_workers)
        return enc,dict(steps=learn.train_iter, settings=args)

    def __call__(self, u):
        if u.what=='look':
            args = candidates[u.objective][u.k]
            enc,row = self.train(u, args, self.a.look)
            row.update(settings=args)
        elif u.what=='peer': enc,row = self.peer(u)
        else:
            args,looks = self.best(u.objective)
            enc,row = self.train(u, args, self.a.epochs)
            row.update(settings=args, looks=looks)
        held = .2 if u.what=='look' else None
        fs = split_features(enc, self.images.labelled(hold_out=held, augment=False), pbar=False)
        row.update(knn=round(knn_accuracy(fs, pbar=False), 5), epochs=self.a.look if u.what=='look' else self.a.epochs)
        if u.what!='look': row.update(linear=round(linear_of(fs, 1., u.seed), 5))
        print(u.name, row['settings'], row['knn'], flush=True)
        return {**row, **provenance(), 'command':command()}

def table(out):
    "A line an objective: the settings chosen, what `val/` says, and lightly's"
    got = [o for o in read_units(Path(out)/'rows') if o['what']!='look']
    of = lambda o,what,k: [r[k] for r in got if r['objective']==o and r['what']==what]
    lines = ['| objective | settings | kNN | linear | lightly: kNN | linear |', '| --- '*6+'|']
    for o in sorted(candidates, key=lambda o: -np.mean(of(o, 'train', 'knn') or [0])):
        if not (rows := [r for r in got if r['objective']==o and r['what']=='train']): continue
        args = ', '.join(f'{k}={v}' for k,v in rows[0]['settings'].items()) or 'as by default'
        cells = [cell(v) if (v := of(o, w, k)) else '' for w in ('train','peer') for k in ('knn','linear')]
        lines.append(f'| `{o}` | {args} | '+' | '.join(cells)+' |')
    return '\n'.join(lines)

@call_parse
def main(
    epochs:int=25, # Of the runs that count
    look:int=8, # Of the runs that choose settings
    seeds:int=1, # 0, 1, ...
    only:str='', # Objectives, separated by commas; all nine if empty
    peers:store_true=False, # lightly's instead
    num_workers:int=0, # Loading processes
    out:str='nbs/results/nine-64px', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing, and print the table."
    a,make = SimpleNamespace(**locals()),globals()['table']
    if not table:
        check_writable(Path(out)/'rows'/'x')
        share_units(units(a), Path(out)/'rows', needs, Job(a))
    print(make(out))
