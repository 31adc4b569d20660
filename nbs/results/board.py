r"""Image网 as its leaderboard asks it: pretrained on `train/` and `unsup/` without labels, fine-tuned with labels.

Every row has the same 22,419 pretraining images, steps and fine-tuning; only the loss differs. Then all of the network
is trained with labels, at the size that was pretrained and at a larger one: with all 14,669 (`all`), with those of the
1,275 dogs alone, who are what is scored (`dogs`), and with these beside a rotation term on every image of `train/` and
`unsup/` (`dogs+rotation`). Learning rates are chosen on held-out dogs of `train/`, with the first seed, at the smaller
size; `val/` is looked at once, after the last epoch.

    python nbs/results/board.py                  # what is missing; several copies share the work, and go on
    python nbs/results/board.py --table

On a GPU, at the board's own size and with its network:

    python nbs/results/board.py --size 128 --large 192 --bs 256 --arch xresnet34 --arch-args '{}' --epochs 100 \
        --seeds 3 --short-side 0 --long-too --out nbs/results/board-128px
"""
import itertools, shutil
from fastcore.script import *
from shared import *
from fastai_contrastive.recipes import provenance
from fastai_contrastive.report.runs import Quiet, share_units, read_units, linear_of

rows = 'scratch','simclr','rotation+simclr','rotation'
labels = 'all','dogs','dogs+rotation'
ft_epochs = 5,20
lrs = 1e-3,4e-3
held = .2 # Share of the labelled dogs that learning rates are chosen on

class Run(Named, namedtuple('Run', 'what row seed labels size epochs', defaults=(None,)*3)):
    "pretrain, judge, choose or tune of a row with a seed"

def units(a):
    "All there is to do, in order: what costs most and says least comes last"
    names,late = a.only.split(',') if a.only else rows,[]
    for s in range(a.seeds):
        for r in names:
            if r!='scratch': yield Run('pretrain', r, s)
            yield Run('judge', r, s)
            if s==0: yield from (Run('choose', r, s, l) for l in labels[:2])
            yield from (Run('tune', r, s, l, a.size, n) for l in labels for n in ft_epochs)
        late += [Run('tune', r, s, l, a.large, n) for r in names for l in labels for n in ft_epochs]
    long = lambda o: o.labels=='all' and o.epochs==max(ft_epochs)
    yield from (o for o in late if not long(o))
    if a.long_too: yield from filter(long, late)

def needs(u):
    "What has to be done before"
    pre = [Run('pretrain', u.row, u.seed)]*(u.row!='scratch' and u.what!='pretrain')
    return pre+([chosen_by(u)] if u.what=='tune' else [])

def chosen_by(u): return Run('choose', u.row, 0, 'dogs' if 'dogs' in u.labels else 'all')

def linked(path, only_dogs, hold_out):
    "A folder of links to the files of `path`: perhaps only the classes of `val/`, perhaps validated on labelled dogs"
    dest = path.parent/f'{path.name}-{"dogs" if only_dogs else "all"}{"-held" if hold_out else ""}'
    if dest.exists(): return dest
    tmp = dest.with_name(f'.{dest.name}.{os.getpid()}')
    dogs = {o.name for o in (path/'val').ls()}
    tr = [o for o in image_files(path, 'train') if o.parent.name in dogs or not only_dogs]
    va = list(image_files(path, 'val'))
    if hold_out: # The same ones for every row: drawn among the labelled dogs, as many of each class
        of = [o for o in tr if o.parent.name in dogs]
        out = {of[i] for i in label_subset([o.parent.name for o in of], held, seed=42)}
        tr,va = [o for o in tr if o not in out],sorted(out)
    for name,fs in zip(('train','val'), (tr,va)):
        for f in fs:
            to = tmp/name/f.parent.name/f.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(f.resolve())
    try: tmp.rename(dest)
    except OSError: shutil.rmtree(tmp) # Another process was faster
    return dest

class Job:
    "What a `Run` is carried out with"
    def __init__(self, a): self.a,self.out = a,Path(a.out)

    def images(self, size):
        "Image网 for images of `size`; those of the smaller size were resized once"
        return small('imagewang', self.a.short_side if size==self.a.size else 0, size)

    def __call__(self, u):
        row,numbers = getattr(self, u.what)(u),('accuracy','knn','linear','lr','trained')
        print(u.name, {k:row[k] for k in numbers if k in row}, flush=True)
        return {**row, **provenance(), 'command':command(),
            'settings':{k:getattr(self.a, k) for k in ('arch','arch_args','bs','lr','weight','short_side')}}

    def weights(self, u): return self.out/'weights'/f'{u.row}-{u.seed}.safetensors'

    def encoder(self, u):
        set_seed(u.seed)
        if u.row=='scratch': return create_encoder(self.a.arch, **self.a.arch_args)
        return load_encoder(self.weights(u))

    def every(self, size, bs):
        "Loaders of all that may be seen without labels"
        path = self.images(size)
        files = image_files(path, ['train','unsup'])
        return unlabeled_dls(files, size, bs, valid_pct=0, path=path, cache=True, num_workers=self.a.num_workers)

    def labelled(self, size, only_dogs, hold_out=False, bs=64, **kwargs):
        path = linked(self.images(size), only_dogs, hold_out)
        return labelled_dls(path, size, bs, cache=True, num_workers=self.a.num_workers, **kwargs)

    def pretrain(self, u):
        a = self.a
        task,objective = 'rotation' if 'rotation' in u.row else None,'simclr' if 'simclr' in u.row else None
        r = Recipe('imagewang', a.size, a.bs, a.arch, a.arch_args, task, objective=objective, weight=a.weight,
            epochs=a.epochs, lr=a.lr, seed=u.seed)
        set_seed(u.seed)
        cbs = [ChannelsLast(), Quiet(), StopOnDivergence()]
        row = pretrain(r, self.weights(u), self.every(a.size, a.bs), cbs, resume=True)[1]
        return {k:row[k] for k in ('images','steps','epochs','columns','values')} | dict(trained=row['seconds'])

    def judge(self, u):
        "Frozen features: the labelled dogs by their neighbours and by a linear probe"
        fs = split_features(self.encoder(u), self.labelled(self.a.size, True, augment=False), pbar=False)
        return dict(knn=knn_accuracy(fs, pbar=False), linear=linear_of(fs, 1., u.seed), n=len(fs.x))

    def fit(self, u, lr, hold_out=False):
        "Fine-tune: the row"
        dls = self.labelled(u.size, u.labels!='all', hold_out)
        more = [PretextTerm(Rotation(), weight=.5, dl=self.every(u.size, 64).train)]*('+' in u.labels)
        cbs = [LastEpochOnly(), ChannelsLast(), Quiet(), StopOnDivergence(), *more]
        out = self.out/'weights'/f'{u.name}.json'
        _,row = finetune(self.encoder(u), out=out, size=u.size, dls=dls, epochs=u.epochs, lr=lr, seed=u.seed, cbs=cbs,
            resume=not hold_out)
        for o in out,out.with_suffix('.pth'): o.unlink(missing_ok=True)
        return dict(accuracy=row['accuracy'], n_labels=row['n_labels'], n_valid=row['n_valid'], lr=lr)

    def choose(self, u):
        "A learning rate, by held-out dogs"
        n = max(ft_epochs) if u.labels=='dogs' else min(ft_epochs)
        accs = {lr:self.fit(Run('choose', u.row, u.seed, u.labels, self.a.size, n), lr, True)['accuracy'] for lr in lrs}
        return dict(lr=max(accs, key=lambda o: accs[o] or 0), tried={str(k):v for k,v in accs.items()})

    def tune(self, u):
        chosen = self.out/'rows'/f'{chosen_by(u).name}.json'
        return self.fit(u, json.loads(chosen.read_text())['lr'])

def tables(out):
    "A table a size: a line a row, mean ± standard deviation over the seeds"
    got = read_units(Path(out)/'rows')
    def _cells(r, size):
        of = [o for o in got if o['row']==r]
        for k in ('knn','linear') if size==sizes[0] else (): yield k,[o[k] for o in of if o['what']=='judge']
        tuned = [o for o in of if o['what']=='tune' and o['size']==size]
        for l,n in itertools.product(labels, ft_epochs):
            yield f'{l}, {n} epochs',[o['accuracy'] for o in tuned if (o['labels'],o['epochs'])==(l,n)]
    sizes = sorted({o['size'] for o in got if o['what']=='tune'})
    return '\n\n'.join(_table({r:dict(_cells(r, s)) for r in rows}, s) for s in sizes)

def _table(cells, size):
    cols = [k for k in next(iter(cells.values())) if any(o[k] for o in cells.values())]
    lines = [f'| pretraining; {size} px | '+' | '.join(cols)+' |', '| --- '*(len(cols)+1)+'|']
    there = {r:o for r,o in cells.items() if any(o.values())}
    lines += [f'| {r} | '+' | '.join(cell(o[k]) if o[k] else '' for k in cols)+' |' for r,o in there.items()]
    return '\n'.join(lines)

@call_parse
def main(
    size:int=64, # Pixels, of pretraining and of the smaller fine-tuning
    large:int=128, # Pixels, of the larger fine-tuning
    bs:int=128, # Images a batch, of pretraining
    arch:str='xresnet_narrow', # Encoder
    arch_args:str='{"blocks": 1}', # JSON, passed to the arch
    epochs:int=40, # Of pretraining
    lr:float=4e-3, # Of pretraining
    weight:float=1., # Of SimCLR beside a task
    short_side:int=80, # Resize the files of the smaller size once to this shorter side; 0 for not
    seeds:int=2, # 0, 1, ...
    only:str='', # Names of rows to run, separated by commas; all if empty
    long_too:store_true=False, # Also all labels for the most epochs at the larger size?
    num_workers:int=0, # Loading processes
    out:str='nbs/results/board-64px', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing of the experiment, and print its table."
    a = SimpleNamespace(**locals())
    a.arch_args = json.loads(arch_args)
    if table: return print(tables(out))
    check_writable(Path(out)/'rows'/'x')
    (Path(out)/'weights').mkdir(parents=True, exist_ok=True)
    todo = list(units(a))
    print(f'{len(todo)} runs', flush=True)
    share_units(todo, Path(out)/'rows', needs, Job(a))
    print(tables(out))
