"Images, networks and learners so small that a fit takes a moment"
from fastai.vision.all import *
from fastai_contrastive.core import *
from fastai_contrastive.objectives.simclr import *

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

def term(weight=1., views=two_views, objective=None, **kwargs):
    return ContrastiveCallback(objective or SimCLR(dim=8), views=views, weight=weight, **kwargs)

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
