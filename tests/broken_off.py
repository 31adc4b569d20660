"""Runs to be broken off: every objective alone, beside a task and beside labels, and what else a run may have.

`run(case, folder)` trains one of them with `Resumable` in `folder`, from wherever it was; `end(learn)` is all that it ended
with. Used by `test_resumable.py`, and by `nbs/results/kills.py`, which kills hundreds of such runs.
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastai.vision.all import *
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import *
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.callback.fp16 import MixedPrecision
from fastai_contrastive.all import *
from fastai_contrastive.precision import PassPrecision
from fastai_contrastive.archs import split_encoder
from fastai_contrastive.resumable import Resumable
from fastai_contrastive.learner_state import opt_state

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

size,bs,epochs = 32,8,3
small = dict(dim=6, hidden=12, pred_hidden=6, bottleneck=6, queue_size=20, n_prototypes=7, nh=8, threshold=0.)

def ours(registry): return sorted(k for k,v in registry.items() if v.__module__.startswith('fastai_contrastive.'))
objectives,tasks = ours(Objective.registry),ours(PretextTask.registry)

def made(cls):
    "Small, as far as its arguments have those names; a transformer's width is no free number"
    names = {*inspect.signature(cls.__init__).parameters} - ({'dim'} if cls.__name__=='MAE' else set())
    return cls(**{k:v for k,v in small.items() if k in names})

def encoder(name=''):
    if 'mae' in name: return create_encoder('test_vit', patch_size=8, depth=2)
    enc = create_encoder('xresnet_narrow', nf=16, blocks=1)
    return split_encoder(enc) if 'cmc' in name else enc

def loaders(labelled=True, clips=False, num_workers=0, **kwargs):
    "Drawn images, 40 with labels or 40 without; or drawn clips"
    data = fastai_path('data')
    if clips: return clip_dls(synth_clips(data/'broken-clips', 40), size, bs, n_frames=4, num_workers=num_workers)
    path = synth_images(data/'broken-images', 10, n_train=4, n_unsup=44, n_valid=1, size=size)
    if labelled: return labelled_dls(path, size, bs=bs, num_workers=num_workers, **kwargs)
    return unlabeled_dls(path, size, bs=bs, folders=['unsup'], num_workers=num_workers, **kwargs)

class Bf16(Callback):
    "PyTorch's autocast on a CPU"
    order = MixedPrecision.order
    def before_batch(self):
        self.cast = torch.autocast('cpu', torch.bfloat16)
        self.cast.__enter__()
    def after_loss(self): self.cast.__exit__(None, None, None)
    def after_pred(self): self.learn.pred = to_float(self.pred)

def torch_adamw(ps, lr, **kwargs): return OptimWrapper(ps, torch.optim.AdamW, lr=lr, **kwargs)

def _more():
    "Cases by what they are about: options of a learner with labels and SimCLR, and how it is fitted"
    one = lambda **kw: dict(cbs=lambda p: [ContrastiveCallback(SimCLR(dim=6), **kw)])
    beside = lambda *o: dict(cbs=lambda p: [ContrastiveCallback(SimCLR(dim=6)), *[f(p) for f in o]])
    return {
        'ranger':dict(opt_func=ranger), 'adamw':dict(opt_func=torch_adamw), 'workers':dict(num_workers=2),
        'bf16':beside(lambda p: Bf16()), 'mixup':beside(lambda p: MixUp()), 'clip':beside(lambda p: GradientClip(.1)),
        'passes':beside(lambda p: PassPrecision('bf16')), 'chunk':one(chunk=3), 'chunk bf16':dict(cbs=lambda p: [
            ContrastiveCallback(made(BYOL), chunk=3), PassPrecision('bf16')]),
        'cache':dict(cache=True), 'cache workers':dict(cache=True, num_workers=2), 'accumulate':beside(lambda p: GradientAccumulation(16)), 'schedule':one(weight=SchedCos(0, 1)),
        'balanced':one(weight=Balanced(every=2)),
        'dl':dict(cbs=lambda p: [ContrastiveCallback(SimCLR(dim=6), dl=loaders(False).train)]),
        'dl workers':dict(cbs=lambda p: [PretextTerm(Rotation(), dl=loaders(False, num_workers=2).train)]),
        'ids dl':dict(cbs=lambda p: [ContrastiveCallback(made(PIRL), dl=loaders(False).train)]),
        'two terms':dict(cbs=lambda p: [ContrastiveCallback(made(BYOL)), PretextTerm(made(Inpainting), .5)]),
        'trackers':dict(cbs=lambda p: [ContrastiveCallback(SimCLR(dim=6)), SaveModelCallback('simclr_loss', fname=p/'best'),
            EarlyStoppingCallback('simclr_loss', patience=9), ReduceLROnPlateau('valid_loss', patience=1)], fit='fit'),
        'gradients':beside(lambda p: TermGradients(every=2)), 'flat':dict(fit='flat'), 'two fits':dict(fit='fine_tune'),
        'knn':beside(lambda p: KNNMonitor(loaders(), k=3)), 'train metrics':dict(train_metrics=True),
        'shared':dict(base='rotation', cbs=lambda p: [ContrastiveCallback(SimCLR(dim=6), share=True)])}

def cases():
    "Names of all"
    res = [f'{b}{o}' for o in objectives for b in ('','task+','labels+') if not (b=='labels+' and needs_clips(o))]
    return res+[f'base {o}' for o in tasks if o!='consistency']+['labels+consistency term']+list(_more())

def needs_clips(name):
    "Does an objective or a task look at clips?"
    cls = Objective.registry.get(name, PretextTask.registry.get(name))
    return getattr(cls, 'takes', 'images')=='clips'

def learner(case, path, *more):
    "The learner of a case, and how it is to be fitted"
    kw = dict(_more().get(case, {}))
    fit,base,cbs = kw.pop('fit', 'one'),kw.pop('base', None),kw.pop('cbs', lambda p: [ContrastiveCallback(SimCLR(dim=6))])
    workers,train_metrics,name = kw.pop('num_workers', 0),kw.pop('train_metrics', False),case
    cache = dict(cache=True) if kw.pop('cache', False) else {}
    if case not in _more():
        base,_,name = ('',None,case) if '+' not in case else case.partition('+')
        if case.startswith('base '): base,name = case.split()[1],''
        cbs = (lambda p: []) if not name else lambda p: [_term(name)]
    clips = needs_clips(name or base)
    alone = base=='' and case not in _more()
    labelled = not alone and base in ('labels',None) or getattr(Objective.registry.get(name), 'needs_labels', False)
    dls = loaders(labelled, clips, workers, **cache)
    set_seed(1)
    enc = encoder(case)
    cbs = [*cbs(path), *more]
    if alone: return Learner(dls, ViewsOnly(enc), loss_func=TermOnly(), cbs=cbs, **kw),fit
    if base in ('labels',None):
        learn = finetune_learner(dls, enc, cbs=cbs, **kw)
        learn.recorder.train_metrics = train_metrics
        return learn,fit
    task = PretextTask.registry['frame_order' if clips else 'rotation' if base=='task' else base]
    return pretext_learner(dls, enc, made(task), cbs=cbs, **kw),fit

def _term(name):
    if name.endswith(' term'): return PretextTerm(made(PretextTask.registry[name.split()[0]]))
    return ContrastiveCallback(made(Objective.registry[name]))

def fitted(learn, how):
    with learn.no_bar(), learn.no_logging():
        if how=='one': learn.fit_one_cycle(epochs, 1e-2)
        if how=='fit': learn.fit(epochs, 1e-2)
        if how=='flat': learn.fit_flat_cos(epochs, 1e-2)
        if how=='fine_tune': learn.fine_tune(epochs-1, 1e-2)
    return learn

def run(case, folder, seed=0, cbs=(), **kwargs):
    "Train, with everything kept in `folder` if there is one; `seed` is what another process begins with"
    set_seed(0)
    path = Path(folder or '.').parent
    keep = [] if folder is None else [Resumable(folder, say=noop, **kwargs)]
    learn,how = learner(case, path, *cbs, *keep)
    set_seed(seed)
    return fitted(learn, how)

def end(learn):
    "All that a run ends with, by name"
    rec = learn.recorder
    res = dict(model=learn.model.state_dict(), opt=opt_state(learn.opt), values=list(map(list, rec.values)),
        losses=[float(o) for o in rec.losses], lrs=rec.lrs, columns=list(rec.metric_names))
    for c in learn._grab_cbs(TermCallback): res[c.name] = dict(state=c.state_dict(), history=c.history.to_dict('list'))
    for c in learn._grab_cbs(TrackerCallback): res[c.name] = dict(best=c.best)
    return res

def parts(o, at=''):
    "A nest as name: tensor or number"
    if isinstance(o, dict): return {k:v for a,b in o.items() for k,v in parts(b, f'{at}.{a}').items()}
    if isinstance(o, (list,tuple,L)): return {k:v for i,b in enumerate(o) for k,v in parts(b, f'{at}.{i}').items()}
    return {at:o}

def unequal(a, b):
    "Where two ends differ, in any bit"
    a,b = parts(a),parts(b)
    def same(x, y):
        if isinstance(x, Tensor): return isinstance(y, Tensor) and x.shape==y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())
        return x==y or (x!=x and y!=y)
    return [k for k in dict.fromkeys([*a, *b]) if k not in a or k not in b or not same(a[k], b[k])]
