"Images, networks and learners so small that a fit takes a moment"
from fastai.vision.all import *
from fastai.callback.fp16 import MixedPrecision
from types import SimpleNamespace
from fastai_contrastive.core import *
from fastai_contrastive.objectives.simclr import *
from fastai_contrastive.pretext_term import *
from fastai_contrastive.pretext.core import *
from fastai_contrastive.pretext.inpainting import *
from fastai_contrastive.pretext.rotation import *

close,fails = test_close,test_fail
# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def images(n, size=16, seed=0):
    "Plain colours with some noise, 0-1, and their classes"
    g,y = torch.Generator().manual_seed(seed),torch.arange(n)%4
    base = torch.tensor([[.8,.2,.2],[.2,.8,.2],[.2,.2,.8],[.6,.6,.1]])[y]
    return base[:,:,None,None]*(.6+.4*torch.rand(n, 3, size, size, generator=g)),y

def make_dls(n=24, bs=8, size=16, labelled=True, n_valid=12, after_batch=None, **kwargs):
    "In order, so that two learners see the same batches"
    def _ds(n, seed): return [(TensorImage(x),)+((TensorCategory(c),) if labelled else ()) for x,c in zip(*images(n, size, seed))]
    dls = DataLoaders.from_dsets(_ds(n,0), _ds(n_valid,1), bs=bs, **{'shuffle':False, 'drop_last':False, 'after_batch':after_batch, 'device':'cpu', 'num_workers':0, **kwargs})
    dls.n_inp = 1
    return dls

def two_views(x): return [x, x.flip(-1)*.9]

def body(): return nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 12, stride=2))
def plain_body(): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU())

def pooled(b=None):
    "Body and classifier as fastai builds them: `model[0]` gives maps"
    return nn.Sequential(ifnone(b, body()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)))

def two_groups(m): return L(m[0], m[1]).map(params)

# Terms of two kinds

kinds = 'contrastive','pretext'
the = SimpleNamespace(kind='contrastive') # Which kind `term` and `alone` make; `test_core` runs over both

def is_pretext(): return the.kind=='pretext'

def same_draws(f, seed=5):
    "`f`, which draws the same numbers at every call, and none of the run's"
    def _f(*args):
        with torch.random.fork_rng(): torch.manual_seed(seed); return f(*args)
    return _f

class Seeded(SimCLR):
    "Its heads are the same whenever they are made"
    def build(self, nf): same_draws(super().build)(nf)
del Objective.registry['seeded']

def question(fixed=False, seeded=False, norms=False):
    "A task; `fixed`: asks the same at every call, `seeded`: heads are the same whenever made, `norms`: whose head has batch norms"
    task = Inpainting(nh=8, grid=4) if norms else Rotation()
    for k in ['make']*fixed+['head']*seeded: setattr(task, k, same_draws(getattr(task, k)))
    return task

def with_head(cb):
    "A `PretextTerm` whose head exists already"
    cb.module['head'] = cb.task.head(create_encoder(body()))
    return cb

def term(weight=1., views=two_views, objective=None, ready=False, seeded=False, fixed=False, norms=False, **kwargs):
    "A term of the kind under test; `ready`: its heads exist already; the rest as for `question`, which for views of SimCLR is always so"
    if is_pretext():
        assert views is two_views and objective is None, 'views and objectives are contrastive: list the test in `only_contrastive`'
        cb = PretextTerm(question(fixed, seeded, norms), weight, **kwargs)
        return with_head(cb) if ready else cb
    obj = objective or (Seeded if seeded else SimCLR)(dim=8)
    return ContrastiveCallback(built(obj) if ready else obj, views=views, weight=weight, **kwargs)

def own_term(weight=1., **kwargs):
    "A term as one writes it, whose draws are the run's"
    if is_pretext(): return PretextTerm(Rotation(), weight, **kwargs)
    return ContrastiveCallback(SimCLR(dim=8), weight=weight, **kwargs)

def seeing(seen, *args, **kwargs):
    "A term that notes the images it is given"
    def _note(x): seen.append(x.clone().as_subclass(Tensor))
    if not is_pretext(): return term(*args, views=lambda x: (_note(x), two_views(x))[1], **kwargs)
    cb = term(*args, **kwargs)
    cb.task.make = lambda x, make=cb.task.make: (_note(x), make(x))[1]
    return cb

def spy(cb, change=noop):
    "What the term's loss gives, step by step; `change` is made to it"
    vals = []
    o,k = (cb.task,'loss_func') if isinstance(cb, PretextTerm) else (cb.objective,'loss')
    def _loss(*args, f=getattr(o, k)): vals.append(change(f(*args))); return vals[-1]
    setattr(o, k, _loss)
    return vals

def alone(dls=None, arch=None, views=two_views, ready=False, norms=False, cbs=None, **kwargs):
    "A learner on a term alone"
    dls,arch = ifnone(dls, make_dls()),ifnone(arch, body())
    if not is_pretext(): return contrastive_learner(dls, arch, built() if ready else SimCLR(dim=8), views=views, cbs=cbs, **kwargs)
    cb = PretextTerm(question(norms=norms), update_bn=True)
    return Learner(dls, ViewsOnly(encoder_for(dls, arch)), loss_func=TermOnly(), cbs=[with_head(cb) if ready else cb, *L(cbs)], **kwargs)

def term_of(learn): return first(learn._grab_cbs(TermCallback))

def col_names(*cbs):
    "The columns that terms should have"
    own = dict(rotation='accuracy', inpainting='masked_mae')
    return [f'{cb.name}_{o}' for cb in cbs for o in ['loss']+([own[cb.task.name]] if isinstance(cb, PretextTerm) else [])]

def col(learn, name, epoch=-1):
    "The number in a column of an epoch's row"
    return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[epoch]))[name]

def make_learn(cbs=None, dls=None, model=None, **kwargs):
    "The same weights at every call"
    set_seed(7)
    model = model or pooled()
    kwargs = {'loss_func':CrossEntropyLossFlat(), 'metrics':accuracy, **kwargs}
    return Learner(dls or make_dls(), model, cbs=cbs, **kwargs)

def quietly(learn): return ContextManagers([learn.no_logging(), learn.no_bar()])

def fit(learn, n=1, f='fit', *args, seed=3, **kwargs):
    set_seed(seed)
    with quietly(learn): getattr(learn, f)(n, *args, **kwargs)
    return learn

def ws(m):
    "Parameters and buffers as one vector"
    return torch.cat([o.detach().flatten().float() for o in m.state_dict().values()])

def bn_stats(m): return torch.cat([o.running_mean for o in m.modules() if isinstance(o, nn.BatchNorm2d)]).clone()

class At(Callback):
    "Calls `f(learn)` at `event` of the `n`-th time it happens in training"
    order = 45
    def __init__(self, event, f, n=0, order=45):
        self.order,self.left,self.f = order,n,f
        setattr(self, event, self._go)
    def _go(self):
        self.left -= 1
        if self.left==-1: self.f(self.learn)

def throw(e):
    def _f(*args): raise e
    return _f

def built(objective=None, nf=12):
    "An objective whose heads exist already, so that what happens to them can be seen"
    o = objective or SimCLR(dim=8)
    o.build(nf)
    o.nf = nf
    return o

def head_ws(cb): return torch.cat([p.detach().flatten() for p in cb.heads]).clone()

def opt_ids(opt): return [[id(p) for p in g] for g in opt.param_lists]

class CPUMixed(MixedPrecision):
    "fastai's mixed precision, on the CPU"
    def __init__(self, dtype=torch.bfloat16): super().__init__('bf16'); self.dtype = dtype
    def before_fit(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16, enabled=self.dtype==torch.bfloat16)
        self.learn.scaler,self.scales = torch.amp.GradScaler('cpu', init_scale=64., enabled=self.dtype!=torch.bfloat16),L()

class ByPixels(Rotation):
    "Turns that an image's own pixels tell, whatever batch it is in"
    def make(self, x):
        k = (x.flatten(1).double().sum(1)*100).long()%4
        return rotate(x, k),k
del PretextTask.registry['by_pixels']
