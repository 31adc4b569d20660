r"""Every objective alone, in one setting: does it learn, what does it cost?

Each (objective, seed) is a job in a process of its own that writes one JSON file into `--out`, so the script can be
stopped and started again, and several copies can share the work:

    python nbs/results/objectives.py            # Imagenette at 64 pixels, the size that two CPU cores can do
    python nbs/results/objectives.py --cost     # seconds, passes and memory of a step, on a quiet machine
    python nbs/results/objectives.py --table    # the table of what is there

The drawn images; then, do those that are low only need more steps? And on a GPU:

    python nbs/results/objectives.py --data synth --size 32 --epochs 8 --seeds 3 --out nbs/results/objectives-drawn-32px
    python nbs/results/objectives.py --epochs 6 --seeds 1 --out nbs/results/longer-64px \
        --only untrained,simclr,lightly-simclr,barlowtwins,byol,pirl,ressl,simsiam
    python nbs/results/objectives.py --size 128 --bs 256 --arch resnet18 --arch-args '{}' --epochs 100 --seeds 3 \
        --short-side 0 --num-workers 12 --out nbs/results/objectives-128px

`untrained` is the encoder as it begins. `lightly-simclr` is the reference: SimCLR with lightly 1.6's transform, head
and loss, the same images, encoder, optimizer, schedule, steps and evaluation (`pip install -e '.[bench]'`).
`lightly-barlowtwins`, `lightly-byol` and `lightly-simsiam` are the same for three that come out low, with heads as
wide as ours. Objectives that need labels get those of the training images, all of them: their rows are no comparison
with the others.
"""
import resource, subprocess, sys, tempfile, time
from fastcore.script import *
from fastai.vision.all import *
from fastai_contrastive.all import *
from fastai_contrastive.recipes import provenance, write_row
sys.path.insert(0, str(Path(__file__).parent))
from shared import small, claim, cell, read_rows
from imagewang import classes_of_val

untrained,reference = 'untrained','lightly-simclr'
references = [reference, *(f'lightly-{o}' for o in ('barlowtwins','byol','simsiam'))]
# These runs have images; an objective that takes clips (`timecontrastive`) has nothing to be compared on
def ours(o): return o.__module__.startswith('fastai_contrastive.') and o.takes=='images'
def known(): return sorted(k for k,v in Objective.registry.items() if ours(v))
def jobs(data): return [untrained, *known()] + references*(data!='synth')

# What a narrow encoder, batches of 64 and a few hundred steps need otherwise than the papers' defaults: chosen by the
# kNN accuracy on the drawn validation images, mostly with seed 0, never on Imagenette
settings = dict(
    barlowtwins=dict(dim=128),
    byol=dict(dim=64, hidden=256, pred_hidden=256, momentum=.5, momentum_end=.99),
    cpc=dict(layers=1, hidden=128),
    densecl=dict(momentum=.98, queue_size=256),
    dino=dict(n_prototypes=512, hidden=256, bottleneck=128, bn=True, momentum=.5, momentum_end=.99,
              teacher_temp=.02, warmup_temp=.02, balance='sinkhorn', freeze=0),
    lejepa=dict(dim=16, hidden=256),
    moco=dict(momentum=.9, queue_size=128, symmetric=True),
    mocov3=dict(dim=64, hidden=256, momentum=.5, momentum_end=.9),
    nnclr=dict(queue_size=4096, hidden=256, pred_hidden=256, dim=128, temp=.1),
    pirl=dict(temp=.2, hidden=128),
    ressl=dict(dim=128, hidden=256, momentum=.9, queue_size=128, temp=.2, teacher_temp=.1),
    simsiam=dict(dim=256, hidden=256, pred_hidden=64),
    swav=dict(n_prototypes=512, queue_size=0, freeze=0, eps=.015),
    tico=dict(rho=2, dim=64, hidden=256, momentum=.9, momentum_end=.9),
    vicreg=dict(dim=256),
    wmse=dict(dim=16))
# On the drawn images these have so many times the epochs: they rise later, as was seen there
slow = dict(barlowtwins=3, byol=3, cmc=3, cpc=3, densecl=3, dino=3, moco=3, nnclr=3, pirl=3, ressl=3, simsiam=3)
# And these have other views there: small ones of 16 pixels show too little of a drawing, a grey one has no colours for
# CMC to compare, and W-MSE is the paper's variant of four views
drawn = dict(cmc=dict(p_grey=0.), dino=dict(n_small=0), swav=dict(n_small=0), wmse=dict(n=4))

def drawn_images(size):
    path = data_path('synth', size).parent/f'synth-objectives-{size}'
    return synth_images(path, n_train=60, n_unsup=1400, n_valid=40, size=size)

def data(a):
    "Dataloaders for pretraining and for evaluation"
    path = small(a.data, a.short_side) if a.data!='synth' else drawn_images(a.size)
    common = dict(size=a.size, bs=a.bs, num_workers=a.num_workers)
    folders = [o for o in ('train','unsup') if (path/o).is_dir()]
    return unlabeled_dls(path, folders=folders, valid_pct=0, **common),labelled_dls(path, **common)

class Pair(Module):
    "Two views through one encoder, lightly's heads and perhaps a teacher: embeddings, or predictions and targets"
    def __init__(self, encoder, head, predictor=None, teacher=False):
        self.encoder,self.head,self.predictor = encoder,head,predictor
        self.teacher = nn.ModuleList([deepcopy(encoder), deepcopy(head)]).requires_grad_(False) if teacher else None

    def forward(self, a, b):
        x = torch.cat([a,b])
        z = self.head(self.encoder(x))
        if self.predictor is None: return z.chunk(2)
        with torch.no_grad(): t = self.teacher[1](self.teacher[0](x)) if self.teacher else z.detach()
        return *self.predictor(z).chunk(2),*t.chunk(2)

class Follow(Callback):
    "lightly's momentum update after each step"
    def __init__(self, start, end): self.start,self.end = start,end
    def after_step(self):
        from lightly.models.utils import update_momentum
        m = self.model
        momentum = cos_momentum(self.start, self.pct_train, self.end)
        for s,t in zip((m.encoder,m.head), m.teacher): update_momentum(s, t, momentum)

def lightly_parts(name, enc, a):
    "lightly's transform, its heads around `enc`, its loss of what they give, and callbacks"
    from lightly import loss as losses,transforms as tfms
    from lightly.models.modules import heads
    o = name.removeprefix('lightly-')
    c = {'hidden':None, **settings.get(o, {})}
    views = tfms.BYOLView1Transform,tfms.BYOLView2Transform
    byol = lambda: tfms.BYOLTransform(*[v(input_size=a.size) for v in views])
    if o=='simclr':
        m = Pair(enc, heads.SimCLRProjectionHead(enc.nf, enc.nf, 128))
        return tfms.SimCLRTransform(input_size=a.size),m,losses.NTXentLoss(temperature=c.get('temp', .2)),[]
    if o=='barlowtwins':
        m = Pair(enc, heads.BarlowTwinsProjectionHead(enc.nf, c['hidden'] or c['dim'], c['dim']))
        return byol(),m,losses.BarlowTwinsLoss(lambda_param=c.get('lambd', 5e-3)),[]
    cos = losses.NegativeCosineSimilarity()
    both = lambda p,q,s,t: (cos(p,t)+cos(q,s))/2
    kind = {'byol':'BYOL','simsiam':'SimSiam'}[o]
    head,predictor = (getattr(heads, kind+k) for k in ('ProjectionHead','PredictionHead'))
    head,predictor = head(enc.nf, c['hidden'], c['dim']),predictor(c['dim'], c['pred_hidden'], c['dim'])
    m = Pair(enc, head, predictor, teacher=o=='byol')
    if o=='byol': return byol(),m,both,[Follow(c['momentum'], c['momentum_end'])]
    return tfms.SimSiamTransform(input_size=a.size),m,both,[]

def lightly_learner(name, dls, enc, a):
    "A reference: lightly's transform on the same files, its heads, its loss"
    tfm,model,loss,cbs = lightly_parts(name, enc, a)
    class Files:
        def __init__(self, items): self.items = list(items)
        def __len__(self): return len(self.items)
        def __getitem__(self, i): return (*tfm(load_rgb(self.items[i])),0)
    loader = lambda ds,**kw: DataLoader(Files(ds.items), bs=a.bs, num_workers=a.num_workers, device=dls.device, **kw)
    pair = DataLoaders(loader(dls.train_ds, shuffle=True, drop_last=True), loader(dls.valid_ds), device=dls.device)
    pair.n_inp = 2
    return Learner(pair, model, loss_func=lambda pred,y: loss(*pred), wd=a.wd, cbs=cbs)

def make_learner(name, seed, a):
    "Learner, encoder and the labelled dataloaders"
    set_seed(seed) # The order of the images is drawn from when their loader is made
    dls,labelled = data(a)
    set_seed(seed)
    enc = create_encoder(a.arch, **a.arch_args)
    if name in references: return lightly_learner(name, dls, enc, a),enc,labelled
    if name==untrained: return None,enc,labelled
    obj = Objective.registry[name](**settings.get(name, {}))
    views = None
    if a.data=='synth': views = obj.views().but(**{**drawn_views, 'p_blur':.5, 'p_solarize':0., **drawn.get(name, {})})
    learn = contrastive_learner(labelled if obj.needs_labels else dls, enc, obj, views, wd=a.wd)
    return learn,learn.model[0],labelled

def spread(f): return F.normalize(f, dim=1).std(0).pow(2).sum().sqrt().item()

def job(name, seed, a):
    "One objective with one seed: the row"
    learn,enc,labelled = make_learner(name, seed, a)
    row = dict(objective=name, seed=seed, settings=settings.get(name.removeprefix('lightly-'), {}),
               **{k:getattr(a, k) for k in kept})
    if learn:
        row['epochs'] = epochs = a.epochs*(slow.get(name, 1) if a.data=='synth' else 1)
        # Where fewer images have labels, as many steps take more epochs
        if learn.dls is labelled: epochs = max(1, round(epochs*len(data(a)[0].train)/len(labelled.train)))
        with learn.no_bar(): learn.fit_one_cycle(epochs, a.lr, cbs=ChannelsLast())
        labels = name in known() and term_of(learn).objective.needs_labels
        row.update(images=len(learn.dls.train_ds), steps=learn.train_iter, labels=labels,
                   losses=[round(float(o[0]),4) for o in learn.recorder.values])
    fs = split_features(enc, labelled, classes_of_val(labelled), pbar=False)
    return dict(**row, knn=round(knn_accuracy(fs),5), linear=round(linear_probe(fs, C=a.C).acc,5),
                spread=round(spread(fs.valid_x),4), **provenance())
kept = 'data','size','bs','arch','arch_args','epochs','lr','wd','C','short_side'

class Steps(Callback):
    "When each step ended"
    def before_fit(self): self.at = []
    def after_batch(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.at.append(time.perf_counter())
        if len(self.at)>a_few: raise CancelFitException()
a_few = 12

class Passes:
    "Counts images through a module, a smaller view as its share of the pixels"
    def __init__(self, m, a): self.n,self.per = 0,a.bs*3*a.size**2; m.register_forward_pre_hook(self)
    def __call__(self, m, args): self.n += args[0].numel()/self.per

def peak_mb():
    if torch.cuda.is_available(): return torch.cuda.max_memory_allocated()/2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def takes_vit(name):
    "Can it train a ViT?"
    obj = Objective.registry[name](**settings.get(name, {}))
    obj.n_items = 8
    try: obj.set_up(obj.prepare(create_encoder('test_vit', patch_size=8)))
    except ValueError: return False
    return True

def cost(name, a):
    "Seconds of a step (data, views, passes, loss, optimizer), its memory, and images through encoder and teacher"
    learn,enc,_ = make_learner(name, 0, a)
    next(iter(learn.dls.train))
    base,steps,counts = peak_mb(),Steps(),[Passes(enc.body, a)]
    if name not in references:
        obj = term_of(learn).objective
        obj.n_items = len(learn.dls.train_ds)
        if hasattr(obj.set_up(enc), 'ema'): counts.append(Passes(obj.ema.encoder.body, a))
        for o in counts: o.n = 0
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=[steps, ChannelsLast()])
    passes = [round(o.n/len(steps.at),2) for o in counts]
    seconds = round(float(np.median(np.diff(steps.at))), 4)
    return dict(objective=name, settings=settings.get(name, {}), seconds_per_step=seconds,
        mb=round(peak_mb()-base), student_passes=passes[0], teacher_passes=sum(passes[1:]),
        vit=None if name in references else takes_vit(name), **{k:getattr(a, k) for k in kept}, **provenance())

def read_cost(out): return json.loads((Path(out)/'cost.json').read_text()) if (Path(out)/'cost.json').exists() else {}

def _facts(name):
    "Cells on what kind of method it is"
    if name not in known(): return ['','','']
    o = Objective.registry[name]
    return [o.negatives, 'yes' if o.teacher else '', 'yes' if o.large_batch else '']

def table(out):
    "A row an objective: what it is, mean ± standard deviation over the seeds, and what a step costs"
    got,costs = read_rows(out),read_cost(out)
    head = ['objective','negatives','teacher','large batch','epochs','kNN','linear']
    head += ['ViT','passes','seconds a step','memory, MB']*bool(costs)
    lines = ['| '+' | '.join(head)+' |', '| --- '*len(head)+'|']
    for name in [untrained, *known(), *references]:
        rs,c = got.filter(lambda o: o['objective']==name),costs.get(name)
        if not rs: continue
        title = (f'`{name}`' if name in known() else name) + (' (labels)' if rs[0].get('labels') else '')
        epochs = '' if name==untrained else str(rs[0]['epochs'])
        cells = [title, *_facts(name), epochs, cell(rs.attrgot('knn')), cell(rs.attrgot('linear'))]
        if c:
            passes = ' + '.join(f'{c[k]:g}' for k in ('student_passes','teacher_passes') if c[k])
            cells += [{True:'yes', False:'no'}.get(c['vit'], ''), passes, f"{c['seconds_per_step']:.2f}", str(c['mb'])]
        lines.append('| '+' | '.join(cells+['']*(len(head)-len(cells)))+' |')
    return '\n'.join(lines)

def call(*args): return subprocess.run([sys.executable, __file__, *sys.argv[1:], *args], check=False).returncode

def run_costs(names, out):
    "One after another, so that nothing else is measured"
    with tempfile.TemporaryDirectory() as d:
        for name in names:
            f = Path(d)/f'{name}.json'
            if call('--job', name, '--cost-file', f): continue
            write_row({**read_cost(out), name:json.loads(f.read_text())}, Path(out)/'cost.json')

def run_jobs(names, seeds, out):
    "What is missing, each in a process of its own"
    for seed in range(seeds):
        for name in names:
            with claim(Path(out)/f'{name}-{seed}.json') as mine:
                if mine: call('--job', f'{name}:{seed}')

@call_parse
def main(
    data:str='imagenette', # 'imagenette', 'synth', or another that `data_path` knows
    size:int=64, # Pixels
    bs:int=64, # Images a batch
    arch:str='xresnet18', # Encoder
    arch_args:str='{"widen": 0.25, "stem_szs": [16, 16, 64]}', # JSON, passed to the arch
    epochs:int=2, # Of pretraining
    lr:float=4e-3, # Highest learning rate
    wd:float=1e-2, # Weight decay
    C:float=1., # Inverse regularisation of the linear probe: cross-validation's choice for the untrained encoder
    short_side:int=80, # Resize the files once to this shorter side; 0 for not
    seeds:int=2, # 0, 1, ...
    only:str='', # Objectives to run, separated by commas; all if empty
    num_workers:int=0, # Loading processes
    out:str='nbs/results/objectives-64px', # Where the rows go
    job:str='', # `name:seed`, for the script's own use
    cost_file:str='', # For the script's own use
    cost:store_true=False, # Measure what a step costs
    table:store_true=False, # Only print the table
):
    "Run what is missing of the comparison, and print its table."
    a = SimpleNamespace(**{**locals(), 'arch_args':json.loads(arch_args)})
    fs = globals()
    if table: return print(fs['table'](out))
    if cost_file: return write_row(fs['cost'](job, a), cost_file)
    if job:
        name,seed = job.split(':')
        start = time.time()
        row = fs['job'](name, int(seed), a)
        write_row({**row, 'seconds':round(time.time()-start,1)}, Path(out)/f'{name}-{seed}.json')
        got = {k:row[k] for k in ('knn','linear','spread')}
        return print(name, seed, got, f'{time.time()-start:.0f} s', flush=True)
    check_writable(Path(out)/'x')
    names = only.split(',') if only else jobs(data)
    if cost: run_costs([o for o in names if o not in (untrained, *references[1:])], out)
    else: run_jobs(names, seeds, out)
    print(fs['table'](out))
