r"""Every pretext task on photographs: does it learn, what does it cost, what is it worth alone and with others?

Imagenette, all training images, three epochs, one seed, a narrow encoder (a small ViT for `mae`, which needs tokens):
each task alone (`rotation`), with SimCLR as a term (`rotation+simclr`), and as a term beside the labels of a tenth of
the images (`labels+rotation`, the same number of steps); beside them the encoder as it began, SimCLR, and the labels
alone. Rows that end in `@vit` are the ViT's, to be compared among themselves; in those that end in `@share` SimCLR
takes the task's own pass as its first view; `@slow` has a lower learning rate. `first` and `last` are the task's loss
in the first epoch and the last.

    python nbs/results/tasks.py                 # what is missing, one JSON file a row; two copies share the work
    python nbs/results/tasks.py --table
    python nbs/results/tasks.py --factors       # the demo's question to every task: what does it keep of drawn images?
    python nbs/results/tasks.py --put           # the tables onto the pages: each task's, and that of all tasks
"""
import subprocess, sys, tempfile, time
from fastcore.script import *
from shared import *
from fastai_contrastive import demo
from fastai_contrastive.recipes import provenance

narrow = 'xresnet_narrow',dict(blocks=1)
vit = 'vit_tiny_patch16_224',dict(patch_size=8, embed_dim=96, depth=4, num_heads=3)
# They need clips, or somebody else's answers
known = sorted(k for k,v in PretextTask.registry.items() if v.__module__.startswith('fastai_contrastive.')
               and getattr(v, 'takes', 'images')=='images' and k!='consistency')
def on_vit(name): return 'mae' in name or name.endswith('@vit')
def names():
    res = ['untrained','simclr','labels','untrained@vit','simclr@vit','labels@vit']
    shared = [f'{o}+simclr@share' for o in ('rotation','inpainting','denoising')]
    return res+[f for o in known for f in (o, f'{o}+simclr', f'labels+{o}')]+['labels+consistency', *shared]

def drawn_names():
    "Those of the drawn images; at the rate of the others rotation alone stayed at chance in one seed of two"
    return [o for o in names() if 'labels' not in o]+['rotation@slow']

class Steps(Callback):
    "Seconds of a step, the median, and the loss at the beginning and the end"
    order = 98
    def before_fit(self): self.t,self.at,self.task = None,[],[]
    def after_batch(self):
        if not self.training: return
        self.at.append(time.perf_counter())
    def summary(self):
        d = np.diff(self.at)
        v = self.learn.recorder.values
        return dict(step=round(float(np.median(d)), 4), first=round(float(v[0][0]), 4), last=round(float(v[-1][0]), 4),
                    columns=list(self.learn.recorder.metric_names[1:-1]),
                    end=[None if not math.isfinite(o) else round(float(o), 4) for o in v[-1]])

def new_encoder(name, seed):
    set_seed(seed)
    arch,args = vit if on_vit(name) else narrow
    return create_encoder(arch, **args)

def learner(name, enc, dls, labelled, seed, views=None):
    "What the row trains; None for nothing"
    steps,(name,_,how) = Steps(),name.partition('@')
    simclr = lambda: ContrastiveCallback(SimCLR(), views, share=how=='share')
    cbs = [steps, *([] if how=='vit' or on_vit(name) else [ChannelsLast()])]
    if name=='untrained': return None,steps
    if name=='simclr': return contrastive_learner(dls, enc, SimCLR(), views, cbs=cbs, wd=1e-2),steps
    if name.startswith('labels'):
        task = name.partition('+')[2]
        term = [PretextTerm(task, dl=dls.train)] if task else []
        return finetune_learner(labelled, enc, cbs=[*cbs, *term], wd=1e-2),steps
    task,_,con = name.partition('+')
    return pretext_learner(dls, enc, task, cbs=[*cbs, *([simclr()] if con else [])], wd=1e-2),steps

def photographs(name, seed, a):
    "A row on Imagenette"
    path,common = small('imagenette', a.short_side),dict(size=a.size, bs=a.bs, num_workers=0)
    set_seed(seed)
    dls = unlabeled_dls(path, folders='train', valid_pct=.02, **common)
    few,full = labelled_dls(path, pct=.1, seed=seed, **common),labelled_dls(path, **common)
    enc = new_encoder(name, seed)
    learn,steps = learner(name, enc, dls, few, seed)
    row = dict(row=name, seed=seed, size=a.size, bs=a.bs, epochs=a.epochs, lr=a.lr, arch=enc.arch, arch_args=enc.kwargs,
               short_side=a.short_side)
    if learn:
        epochs = a.epochs if learn.dls is not few else max(1, round(a.epochs*len(dls.train)/len(few.train)))
        cbs = LastEpochOnly() if learn.dls is few else None
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, a.lr, cbs=cbs)
        row.update(steps.summary(), steps=learn.train_iter)
    ev = evaluate(enc, dls=full, pbar=False)
    mb = round(1024*peak_memory()) # Of this process, which has one row
    return dict(row, knn=ev['knn'], linear=ev['linear'], mb=mb, **provenance(), command=command())

def factors(name, seed, a):
    "A row on drawn images: the demo's images, encoder and steps"
    with tempfile.TemporaryDirectory() as d:
        path = synth_images(Path(d)/'images', 10, 20, 1800, 30, 32, seed)
        dls = demo._demo_dls(demo._demo_images(path), path, 64, seed)
    enc,lr = new_encoder(name, seed),2e-3 if on_vit(name) else 4e-3 if name.endswith('@slow') else 1e-2
    learn,steps = learner(name, enc, dls, None, seed, SimCLR().views().but(**drawn_views))
    if learn:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(20, lr)
    kept = {k:round(v,2) for k,v in probe_factors(enc, pbar=False).items()}
    return dict(row=name, seed=seed, arch=enc.arch, arch_args=enc.kwargs, epochs=20, factors=kept,
                **(steps.summary() if learn else {}), **provenance(), command=command())

def factor_table(rows, names, say=noop):
    "A line a row: what is read of each factor"
    keys = list(rows[names[0]]['factors'])
    line = lambda k: f"| {say(k)} | "+' | '.join(f"{rows[k]['factors'][f]:.1f}" for f in keys)+' |'
    return '\n'.join(['| trained on | '+' | '.join(keys)+' |', '| --- '*(len(keys)+1)+'|', *map(line, names)])

def table(out, drawn):
    "One line a row"
    rows = {o['row']:o for o in read_rows(out) if o['seed']==0}
    if drawn: return factor_table(rows, sorted(rows))
    lines = ['| trained on | kNN | linear | loss, first → last | seconds a step | MB |', '| --- '*6+'|']
    for k,o in sorted(rows.items()):
        say = lambda f,v: '-' if v not in o else format(o[v], f)
        lines.append(f"| {k} | {100*o['knn']:.1f} | {100*o['linear']:.1f} | {say('.3f','first')} → "
                     f"{say('.3f','last')} | {say('.2f','step')} | {o['mb']} |")
    return '\n'.join(lines)

head = '## What it keeps'

def kept_table(name, rows):
    "What is read of drawn images after the task, beside what it began with, SimCLR, and the two together"
    end = '@vit'*on_vit(name)
    names = [f'untrained{end}', name, *([f'{name}@slow'] if f'{name}@slow' in rows else []), f'simclr{end}',
        *sorted(k for k in rows if k.startswith(f'{name}+simclr'))]
    said = dict(share=', the pass shared', slow=', a lower learning rate')
    def _say(k):
        k,_,how = k.partition('@')
        return k+said.get(how, '')
    return factor_table(rows, names, _say)

def page_of(name):
    "The notebook of a task"
    mod = PretextTask.registry[name].__module__.split('.')[-1]
    return next(Path(__file__).parents[1].glob(f'pretext/*_{mod}.ipynb'))

def put():
    "Each task's table onto its page, below `head`; those of all tasks onto their index"
    out = Path(__file__).parent
    rows = {o['row']:o for o in read_rows(out/'tasks-drawn-32px')}
    for name in (o for o in known if o in rows):
        nb = json.loads((fn := page_of(name)).read_text(encoding='utf-8'))
        cell = next(c for c in nb['cells'] if ''.join(c['source']).startswith(head))
        cell['source'] = in_place(''.join(cell['source']), kept_table(name, rows)).splitlines(True)
        write_notebook(nb, fn)
    fn = out.parent/'pretext/index.md'
    for o in ('tasks-drawn-32px','tasks-64px'):
        if not (out/o).exists(): continue
        text = in_place(fn.read_text(encoding='utf-8'), table(out/o, 'drawn' in o))
        fn.write_text(text+'\n', encoding='utf-8')

@call_parse
def main(
    size:int=64, # Pixels
    bs:int=128, # Images a batch
    epochs:int=3, # Times that every image is seen
    lr:float=4e-3, # Highest learning rate
    short_side:int=80, # Resize the files once to this shorter side; 0 for not
    seeds:int=1, # 0, 1, ...
    only:str='', # Names of rows to run, separated by commas; all if empty
    factors:store_true=False, # Drawn images instead, and what is kept of their factors?
    out:str='', # Where the rows go; `nbs/results/tasks-64px` or `tasks-drawn-32px` if empty
    table:store_true=False, # Only print the table
    put:store_true=False, # Only write the tables onto the pages
):
    "Run what is missing, and print the table."
    if put: return globals()['put']()
    fs,a = globals(),SimpleNamespace(**locals())
    out = out or ('nbs/results/tasks-drawn-32px' if factors else f'nbs/results/tasks-{size}px')
    todo = only.split(',') if only else drawn_names() if factors else names()
    f = fs['factors' if factors else 'photographs']
    if not table and len(todo)>1: # Each in a process of its own, whose memory is the row's
        for o in todo: subprocess.run([sys.executable, *sys.argv, '--only', o], stdout=subprocess.DEVNULL, check=True)
    elif not table: run_missing([(o,s) for s in range(seeds) for o in todo], out, lambda n,s: f(n, s, a))
    print(fs['table'](out, factors))
