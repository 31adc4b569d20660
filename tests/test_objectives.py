"What every objective has to do, over the registry: a new one gets these tests for nothing"
import forked, inspect, io, pytest, torch.distributed as dist
from contextlib import nullcontext
from utils import *
from fastai_contrastive.objective import *
from fastai_contrastive.memory import *
from fastai_contrastive.objectives import *
from fastai_contrastive.pretext.core import *
from fastai_contrastive.pretext.rotation import *
from fastai_contrastive.views import *

# An objective that takes clips cannot be given the images that these tests are made of: its contract is kept in the tests of its own
names = sorted(k for k,v in Objective.registry.items() if v.__module__.startswith('fastai_contrastive.') and v.takes=='images')
each = pytest.mark.parametrize('name', names)
# Settings by these names are made small; a method with others has defaults that fit a small network
small = dict(dim=6, hidden=12, pred_hidden=6, bottleneck=6, queue_size=20, n_prototypes=7)
size = 32

def make(name, **kwargs):
    "A small objective of that name"
    cls = Objective.registry[name]
    return cls(**{k:v for k,v in {**small, **kwargs}.items() if k in inspect.signature(cls.__init__).parameters})

class Scale(nn.Module):
    def __init__(self, by): super().__init__(); self.by = by
    def forward(self, x): return x*self.by

def conv_body(scale=1., bn=False):
    norm = (lambda c: [nn.BatchNorm2d(c)]) if bn else (lambda c: [])
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), *norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), *norm(8), nn.ReLU(),
              nn.Conv2d(8, 12, 3, stride=2, padding=1), *norm(12), nn.LeakyReLU(), Scale(scale)]
    for o in layers:
        if isinstance(o, nn.Conv2d): nn.init.kaiming_normal_(o.weight), nn.init.zeros_(o.bias)
    return nn.Sequential(*layers)

def conv(obj, scale=1., bn=False, seed=0):
    torch.manual_seed(seed)
    return obj.prepare(create_encoder(conv_body(scale, bn)))

def vit(obj, seed=0):
    pytest.importorskip('timm')
    torch.manual_seed(seed)
    return obj.prepare(create_encoder('test_vit', patch_size=8, depth=2))

def batch(n=8, seed=0): return images(n, size, seed)

def views_of(obj, x, seed=0):
    torch.manual_seed(seed)
    return obj.views()(x)

def ready(name, enc=None, seed=0, **kwargs):
    "An objective with its heads, in training mode, past the epochs in which heads stand still; and its encoder"
    obj = make(name, **kwargs)
    enc = ifnone(enc, conv)(obj)
    torch.manual_seed(seed+1)
    obj.n_items = 64
    obj.set_up(enc).train()
    enc.train()
    obj.epoch,obj.pct_train = 5,.5
    return obj,enc

def term_of(obj, enc, n=8, seed=0):
    x,y = batch(n, seed)
    obj.ids = torch.arange(n)+8*seed if obj.needs_ids else None
    views = views_of(obj, x, seed)
    torch.manual_seed(seed)
    return obj(enc, views, y if obj.needs_labels else None)

def grads(m): return {k:p.grad for k,p in m.named_parameters() if p.requires_grad}

# Numbers

# Four batch norms in a row, at a low temperature, bring features of 1e-4 back to scale and give them gradients of 3e5 (nnclr) and 1.4e5 (mocov3), more than float16 holds: a loss scaler would come down likewise
steep = {'nnclr','mocov3'}

@each
@pytest.mark.parametrize('scale,dtype', [(s,d) for s in (1e-4,1.,1e4) for d in (None,torch.bfloat16,torch.float16) if s<=1 or d is not torch.float16]) # There the encoder itself leaves float16's range
def test_finite(name, scale, dtype):
    obj,enc = ready(name, partial(conv, scale=scale))
    with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None): c = term_of(obj, enc)
    assert c.shape==() and c.dtype==torch.float32 and torch.isfinite(c)
    (c*2**-10 if dtype is torch.float16 and name in steep else c).backward()
    assert all(torch.isfinite(p.grad).all() for m in (obj,enc) for p in m.parameters() if p.grad is not None)

@each
@pytest.mark.parametrize('by', [1e-6,1e6])
@pytest.mark.parametrize('bf16', [False,True])
def test_embeddings_of_any_size(name, by, bf16):
    "What the heads give is large or tiny, where their batch norms cannot undo it"
    obj,enc = ready(name)
    for m in (obj, getattr(obj, 'ema', None)):
        for o in m.modules() if m else ():
            if isinstance(o, nn.Linear): o.weight.data.mul_(by), None if o.bias is None else o.bias.data.mul_(by)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bf16): c = term_of(obj, enc)
    c.backward()
    assert torch.isfinite(c) and all(torch.isfinite(p.grad).all() for m in (obj,enc) for p in m.parameters() if p.grad is not None)

@each
def test_heads_run_in_float32(name):
    obj,enc = ready(name)
    seen = set()
    for o in obj.modules():
        if isinstance(o, (nn.Linear,nn.Conv2d)) and o not in {*getattr(obj, 'ema', nn.Module()).modules()}: o.register_forward_hook(lambda m,x,y: seen.add(y.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16): term_of(obj, enc)
    assert seen=={torch.float32}

@each
def test_validation_moves_nothing(name):
    "No memory, no centre, no count, no running statistics"
    obj,enc = ready(name)
    term_of(obj, enc)
    obj.eval(), enc.eval()
    was = ws(obj).clone(),ws(enc).clone()
    with torch.no_grad(): a,b = term_of(obj, enc, seed=1),term_of(obj, enc, seed=1)
    assert torch.isfinite(a) and a==b and torch.equal(was[0], ws(obj)) and torch.equal(was[1], ws(enc))

@each
def test_collapsed_is_finite(name):
    "The same image everywhere, and an encoder that answers zero"
    obj,enc = ready(name, partial(conv, scale=0.))
    x = batch()[0][:1].expand(8,-1,-1,-1)
    obj.ids = torch.arange(8)
    c = obj(enc, views_of(obj, x), batch()[1] if obj.needs_labels else None)
    c.backward()
    assert torch.isfinite(c) and all(torch.isfinite(p.grad).all() for m in (obj,enc) for p in m.parameters() if p.grad is not None)

# Gradients

@each
@pytest.mark.parametrize('enc', [conv,vit])
def test_gradient_reaches_all_but_the_teacher(name, enc):
    obj = make(name)
    try: obj,enc = ready(name, enc)
    except ValueError as e:
        assert name in str(e) and 'encoder' in str(e), 'an encoder that it cannot use should be refused by name'
        return pytest.skip(str(e))
    term_of(obj, enc).backward()
    lost = [k for m in (obj,enc) for k,g in grads(m).items() if (g is None or not g.abs().sum()>0) and not _norm_head(k)]
    assert not lost, f'no gradient reaches {lost}'
    if obj.teacher: assert obj.ema is not None and all(p.grad is None and not p.requires_grad for p in obj.ema.parameters())

# An encoder's classifier-side norm may be unused by an objective that looks at maps; a ViT's registers and class token too
def _norm_head(k): return any(o in k for o in ('fc_norm','cls_token','reg_token'))

@pytest.mark.parametrize('name', [o for o in names if Objective.registry[o].teacher])
def test_teacher_follows(name):
    obj,enc = ready(name)
    was,student = ws(obj.ema).clone(),[p for p in enc.parameters()]
    term_of(obj, enc)
    assert torch.equal(torch.cat([p.flatten() for p in obj.ema.encoder.parameters()]), torch.cat([p.detach().flatten() for p in student])), 'the forward pass moved it'
    with torch.no_grad(): student[0] += 1
    obj.pct_train = 0.
    obj.after_step(enc)
    first = next(obj.ema.encoder.parameters())
    assert torch.allclose(first, student[0]-obj.momentum, atol=1e-6)

@pytest.mark.parametrize('name', [o for o in names if Objective.registry[o].teacher])
def test_a_teacher_of_another_encoder_is_refused(name):
    "One of the same width, before the first step"
    obj,enc = ready(name)
    other = create_encoder(nn.Sequential(nn.Conv2d(3, enc.nf, 3, stride=4), nn.ReLU()))
    assert other.nf==enc.nf and obj.set_up(enc) is obj
    with pytest.raises(ValueError, match=f'{name} has a teacher already, a copy of another encoder'): obj.set_up(other)

# Settings and views

def settings_of(name): return [(k,p.annotation) for k,p in list(inspect.signature(Objective.registry[name].__init__).parameters.items())[1:]]

@each
def test_settings_of_the_wrong_kind(name):
    "Whole numbers of -1 or 2.5, fractions of nan, infinity or -1, are refused by name"
    for k,kind in settings_of(name):
        kinds = getattr(kind, '__args__', (kind,))
        for v in (-1,2.5) if int in kinds else (math.nan,math.inf,-1.) if float in kinds else ():
            with pytest.raises(ValueError, match=f'{k}'): Objective.registry[name](**{k:v})

@each
def test_more_views(name):
    "A third view counts, or is refused by name"
    obj,enc = ready(name)
    obj.ids = torch.arange(8) if obj.needs_ids else None
    def _term(x3):
        torch.manual_seed(0)
        return obj.eval()(enc.eval(), [*two_views(batch()[0]),x3], batch()[1] if obj.needs_labels else None)
    try: a,b = _term(batch()[0]),_term(batch(seed=3)[0].flip(0))
    except ValueError as e: assert str(e).startswith(f'{name} has no use for more than {obj.max_views} views: got 3; pass')
    else: assert torch.isfinite(a) and a!=b

# State

def steps(obj, enc, opt, ns):
    for i in ns:
        obj.pct_train = i/5
        term_of(obj, enc, seed=i).backward()
        opt.step()
        opt.zero_grad()
        obj.after_step(enc)

def sgd(obj, enc): return torch.optim.SGD([p for m in (enc,obj) for p in m.parameters() if p.requires_grad], lr=.05)

@each
def test_state_round_trip(name):
    "Three steps, save, load into a new one, two more: five in a row"
    obj,enc = ready(name)
    steps(obj, enc, sgd(obj, enc), range(5))
    a,e = ready(name)
    steps(a, e, sgd(a, e), range(3))
    b,f = ready(name, seed=9)
    f.load_state_dict(e.state_dict())
    b.load_state_dict(deepcopy(a.state_dict()))
    steps(b, f, sgd(b, f), range(3,5))
    assert torch.allclose(ws(enc), ws(f), atol=1e-6)
    assert torch.allclose(ws(obj), ws(b), atol=1e-6)

@each
def test_state_through_the_callback(name):
    "A new callback in a new learner gives the same term as the one that was saved"
    def _learn(cb, seed):
        set_seed(seed)
        o = cb.objective
        return contrastive_learner(make_dls(n=16, size=size), conv_body(), o, opt_func=SGD)
    learn = fit(_learn(ContrastiveCallback(make(name)), 1))
    cb = learn._grab_cbs(ContrastiveCallback)[0]
    other = _learn(ContrastiveCallback(make(name)), 2)
    cb2 = other._grab_cbs(ContrastiveCallback)[0]
    cb2.load_state_dict(cb.state_dict())
    other.model.load_state_dict(learn.model.state_dict())
    vals = [term_after_a_fit(o) for o in (learn,other)]
    assert vals[0]==vals[1]
    assert torch.equal(ws(cb.objective), ws(cb2.objective))

def term_after_a_fit(learn):
    "Values of a fit that changes nothing"
    fit(learn, 1, 'fit', 0.)
    return [float(o) for o in learn.recorder.losses]

# Batches

@each
def test_odd_batches(name):
    "A last batch that is smaller, and one of a single image, which is passed over"
    n = make(name).min_bs
    for extra in (3,1):
        learn = contrastive_learner(make_dls(n=2*max(8,n)+extra, bs=max(8,n), size=size), conv_body(), make(name))
        fit(learn)
        assert np.isfinite(learn.recorder.values[-1][0])

@each
def test_batches_too_small(name):
    obj = make(name)
    with pytest.raises(ValueError, match=f'{name} needs batches of'): fit(contrastive_learner(make_dls(bs=obj.min_bs-1, size=size), conv_body(), obj))

# In a learner

@each
def test_second_fit_and_lr_find(name):
    learn = contrastive_learner(make_dls(n=16, size=size), conv_body(bn=True), make(name))
    cb = learn._grab_cbs(ContrastiveCallback)[0]
    with quietly(learn): learn.lr_find(num_it=4, show_plot=False, suggest_funcs=())
    fit(learn)
    was,model = ws(cb.objective).clone(),ws(learn.model).clone()
    with quietly(learn): learn.lr_find(num_it=4, show_plot=False, suggest_funcs=())
    assert torch.equal(was, ws(cb.objective)) and torch.equal(model, ws(learn.model))
    fit(learn)
    assert not torch.equal(was, ws(cb.objective)) or not list(cb.objective.state_dict())
    assert np.isfinite(learn.recorder.values[-1][0])

@each
def test_without_labels(name):
    learn = contrastive_learner(make_dls(labelled=False, size=size), conv_body(), make(name))
    if make(name).needs_labels:
        with pytest.raises(ValueError, match=f'{name} needs labels'): fit(learn)
    else: assert np.isfinite(fit(learn).recorder.values[-1][0])

@each
@pytest.mark.parametrize('beside', ['labels','task'])
def test_beside(name, beside):
    obj = make(name)
    enc,cb = conv(obj, bn=True),ContrastiveCallback(obj)
    dls = make_dls(n=16, size=size)
    learn = finetune_learner(dls, enc, n_out=4, loss_func=CrossEntropyLossFlat(), cbs=cb) if beside=='labels' else pretext_learner(dls, enc, Rotation(), cbs=cb)
    fit(learn)
    assert learn.recorder.metric_names[-2]==f'{name}_loss' and np.isfinite(learn.recorder.values[-1][-1]) and cb.heads is not None
    assert isinstance(learn.loss_func, TermOnly) is False and not cb.loan._out
    if cb.heads: assert any(p in cb.loan.state for p in cb.heads)

# Two processes

def _half(obj, n, i):
    x,y = batch(n)
    views = [v[i] for v in views_of(obj, x)]
    obj.ids = torch.arange(n)[i] if obj.needs_ids else None
    return views,y[i] if obj.needs_labels else None

def _grads(name, i, n=16):
    obj,enc = ready(name)
    views,y = _half(obj, n, i)
    torch.manual_seed(3)
    c = obj(enc, views, y)
    c.backward()
    gs = {f'{k}.{n}':g for k,m in (('obj',obj),('enc',enc)) for n,g in grads(m).items()}
    return dict(loss=c.detach(), grads=gs, state={k:v.clone() for k,v in obj.state_dict().items()})

def _state(name, ids):
    "What is remembered after a step of 32 images, of which this process has those of `ids`, a list of portions"
    obj,enc = ready(name, queue_size=40)
    x,y = batch(32)
    views = views_of(quiet_norms(obj), x)
    for i in ids:
        obj.ids = torch.arange(32)[i] if obj.needs_ids else None
        with obj.held(): obj(enc, portion(views, i), y[i] if obj.needs_labels else None)
    obj.after_step(enc)
    return obj.state_dict()

def _worker(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=rank, world_size=2)
    at = 16*rank
    portions = {k:_state(k, [slice(at, at+8),slice(at+8, at+16)]) for k in names}
    torch.save({'portions':portions, **{k:_grads(k, slice(8*rank, 8*rank+8)) for k in names}}, f'{path}/{rank}.pt')
    dist.destroy_process_group()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    p = tmp_path_factory.mktemp('dist')
    forked.spawn(_worker, (str(p),), 2)
    return [torch.load(p/f'{i}.pt') for i in range(2)]

@each
def test_two_processes_are_one_with_the_joined_batch(two, name):
    one,(a,b) = _grads(name, slice(None)),(o[name] for o in two)
    assert torch.allclose((a['loss']+b['loss'])/2, one['loss'], atol=1e-5)
    for k,g in one['grads'].items():
        mean = None if g is None else (a['grads'][k]+b['grads'][k])/2
        assert mean is None or torch.allclose(mean, g, rtol=1e-4, atol=1e-5*max(1., g.abs().max().item())), k
    for k,v in one['state'].items(): assert torch.allclose(a['state'][k].float(), v.float(), atol=1e-5) and torch.equal(a['state'][k], b['state'][k]), k

@each
def test_two_processes_in_portions_are_one_with_the_joined_batch(two, name):
    "Two portions on each of two processes, and one batch on one: the same is remembered, in the same order"
    one,both = _state(name, [slice(None)]),[o['portions'][name] for o in two]
    assert not differ(both[0], one) and all(torch.equal(v, both[1][k]) for k,v in both[0].items())

# A step in portions

def quiet_norms(obj):
    "The heads' batch norms use running statistics, so that a row's embedding does not depend on its batch"
    for m in obj.modules():
        if isinstance(m, nn.BatchNorm1d): m.eval()
    return obj

def portion(views, i): return [v[i] for v in views]

def step_in(name, sizes, norms=False, held=True, n=24, seed=0, **kwargs):
    "State and gradients after a step of `n` images in portions of `sizes`; the loss of each counts by its images"
    obj,enc = ready(name, **{'queue_size':30, 'center_momentum':.5, **kwargs})
    if name=='pirl': obj.transformed = lambda encoder,x: obj.project(encoder(x), obj.joined if obj.transform=='rotation' else obj.projector) # Without draws
    if not norms: quiet_norms(obj)
    x,y = batch(n, seed)
    views,at = views_of(obj, x, seed),0
    for k in sizes:
        i,at = slice(at, at+k),at+k
        obj.ids = torch.arange(n)[i] if obj.needs_ids else None
        torch.manual_seed(3)
        was = {k:v.clone() for k,v in obj.state_dict().items()}
        with obj.held() if held else nullcontext(): c = obj(enc, portion(views, i), y[i] if obj.needs_labels else None)
        if held: assert all(torch.equal(v, was[k]) for k,v in obj.state_dict().items()), 'a portion moved something'
        (c*k/n).backward()
        obj.pct_train += .01
    gs = {f'{k}.{p}':g for k,m in (('obj',obj),('enc',enc)) for p,g in grads(m).items() if g is not None}
    obj.after_step(enc)
    return {k:v.clone() for k,v in obj.state_dict().items()},gs

def differ(a, b, tol=1e-5):
    "Names of what is not the same in two states, which have the same names"
    assert a.keys()==b.keys()
    return [k for k,v in a.items() if not torch.allclose(v.float(), b[k].float(), atol=tol*max(1., b[k].float().abs().max().item()))]

@each
@pytest.mark.parametrize('sizes', [(8,8,8),(7,9,8)])
def test_state_after_a_step_in_portions(name, sizes):
    "Centre, covariance, queue, memory, counts, teacher: all are what one batch of that size would have left"
    one,some = step_in(name, (24,)),step_in(name, sizes)
    assert not differ(some[0], one[0])

@each
def test_held_and_at_once_are_the_same_to_the_bit(name):
    "Without portions nothing is another number than in a plain loop, batch norms' statistics included"
    a,b = step_in(name, (24,), norms=True),step_in(name, (24,), norms=True, held=False)
    for x,y in zip(a,b): assert x.keys()==y.keys() and all(torch.equal(x[k], y[k]) for k in x)

# The loss is a mean over images, each of which is compared with what is remembered or with itself, and not with the batch
alone = ['byol','densecl','dino','moco','pirl','ressl','simsiam']

@pytest.mark.parametrize('name', alone)
def test_gradient_of_a_step_in_portions(name):
    "For these it is the large batch's (for PIRL if all images are negatives; batch norm in the heads aside)"
    one,some = (step_in(name, o, n_neg=64, transform='rotation')[1] for o in ((24,),(7,9,8)))
    assert not differ(some, one, 1e-5)

@each
def test_heads_statistics_after_a_step_in_portions(name):
    "Each head's first norm sees features that do not depend on the batch: exact. Behind it embeddings do, so only about the same"
    one,some = (step_in(name, o, norms=True)[0] for o in ((24,),(7,9,8)))
    first = {}
    for k in one:
        if 'running' in k and not k.startswith(('ema.encoder','predictor')): first.setdefault((k.split('.')[-3],k.split('.')[-1]), k)
    firsts = [k for k in first.values() if 'ema' not in k]
    assert not differ({k:some[k] for k in firsts}, {k:one[k] for k in firsts}, 1e-5)
    for k in one:
        if 'num_batches' in k: assert some[k]==one[k], k

def test_norms_of_a_teacher_after_a_step_in_portions():
    "The encoder's too: one step, one move, by the mean and variance of the joined batch"
    def _stats(sizes):
        obj,enc = ready('dino', partial(conv, bn=True))
        views,at = views_of(obj, batch(24)[0]),0
        for k in sizes:
            with obj.held(): obj(enc, portion(views, slice(at, at+k)))
            at += k
        obj.after_step(enc)
        return {k:v.clone() for k,v in obj.ema.encoder.body[1].state_dict().items()}
    one,some = _stats((24,)),_stats((7,9,8))
    assert some['num_batches_tracked']==1 and not differ(some, one, 1e-5)

@each
def test_a_step_that_did_not_come_about_leaves_nothing(name):
    "`discard`, and a portion that fails on its way"
    obj,enc = ready(name)
    was,(x,y) = ws(obj).clone(),batch(8)
    views = views_of(obj, x)
    obj.ids = torch.arange(8) if obj.needs_ids else None
    y = y if obj.needs_labels else None
    with obj.held(): obj(enc, views, y)
    obj.discard()
    obj._commit()
    assert torch.equal(ws(obj), was)
    with pytest.raises(KeyError), obj.held():
        obj(enc, views, y)
        throw(KeyError())()
    obj._commit()
    assert torch.equal(ws(obj), was)

def test_schedules_stand_still_within_a_step():
    "All portions, and the teacher, see the share of training at which the first began"
    obj,enc = ready('dino')
    seen = []
    for pct in (.1,.2,.3):
        obj.pct_train = pct
        with obj.held(): seen.append(obj.pct_train)
    obj.after_step(enc)
    assert seen==[.1]*3 and obj.pct_train==.1
    obj.pct_train = .4
    with obj.held(): assert obj.pct_train==.4

@pytest.mark.parametrize('name', ['dino','swav'])
@pytest.mark.parametrize('held', [False,True])
def test_every_fit_is_counted(name, held):
    "Also one whose first step is seen past the epochs in which prototypes stand still, or in which they never do"
    obj,enc = ready(name, freeze=0)
    for i,(pct,n) in enumerate(((.5,1),(.6,1),(.1,2))):
        obj.pct_train = pct
        with obj.held() if held else nullcontext(): term_of(obj, enc, seed=i)
        obj.after_step(enc)
        assert obj.fit_count.n==n and torch.isclose(obj.fit_count.at, torch.tensor(pct))

class Usual(Objective):
    "A user's own: a mean in a buffer, and an `after_step` that does not call the one of its base"
    def __init__(self): self.register_buffer('mean', torch.zeros(12))
    @once_a_step
    def remember(self, z): self.mean = .5*self.mean + .5*z.mean(0)
    def loss(self, z, t, y):
        if self.training: self.remember(torch.cat(z))
        return F.cosine_similarity(z[0], self.mean[None]+1).mean()
    def after_step(self, encoder): self.stepped = True
del Objective.registry['usual'] # Others' tests run over it

def test_own_memory():
    def _mean(sizes):
        obj,enc,at = Usual(),create_encoder(conv_body()),0
        for k in sizes:
            with obj.set_up(enc).held(): obj(enc, two_views(batch(8)[0][at:at+k]))
            at += k
            assert not obj.mean.any()
        obj.after_step(enc)
        assert obj.stepped
        return obj.mean
    set_seed(1)
    a = _mean((8,))
    set_seed(1)
    assert a.abs().sum()>0 and torch.allclose(a, _mean((3,5)), atol=1e-6)

# In a learner that accumulates

def _accumulated(obj, bs, n=32, cbs=(), epochs=2, **kwargs):
    dls = make_dls(n=n, bs=bs, size=size, labelled=False)
    set_seed(4)
    learn = contrastive_learner(dls, conv_body(), obj, views=two_views, opt_func=partial(SGD, mom=0.), cbs=cbs, **kwargs)
    return fit(learn, epochs, 'fit', .05)

@pytest.mark.parametrize('name', ['dino','moco','ressl'])
def test_accumulation_is_the_large_batch(name):
    "Weights, teacher, centre, queue and counts after four steps; schedules included"
    kw = dict(center_momentum=.5, warmup=.9, momentum=.7, n_prototypes=7, freeze=1)
    a,b = (_accumulated(make(name, **kw), bs, cbs=cbs) for bs,cbs in ((16,()),(4,GradientAccumulation(16))))
    for m,k in ((a.model,b.model),(getattr(a,name).objective,getattr(b,name).objective)): assert not differ(m.state_dict(), k.state_dict(), 1e-5)

@each
def test_accumulation_counts_steps(name):
    "Counts of steps, fits and norms' batches are the large batch's; the portion that is left over at the end moves nothing"
    bs = max(8, make(name).min_bs)
    def _counts(bs, n, *cbs):
        obj = make(name)
        fit(contrastive_learner(make_dls(n=n, bs=bs, size=size), conv_body(), obj, opt_func=SGD, cbs=list(cbs)))
        return {k:int(v) for k,v in obj.state_dict().items() if not v.is_floating_point() and k.split('.')[-1]!='met'}
    assert _counts(bs, 5*bs, GradientAccumulation(2*bs))==_counts(2*bs, 4*bs)

# Teachers

teachers = [o for o in names if Objective.registry[o].teacher]

class Drawing(nn.Module):
    "What draws by looking at its own `training`: dropout in attention and in a function, stochastic depth, an LSTM's"
    def __init__(self, nf):
        super().__init__()
        self.attn,self.lstm = nn.MultiheadAttention(nf, 2, dropout=.5, batch_first=True),nn.LSTM(nf, nf, 2, dropout=.5, batch_first=True)
        self.drop,self.norm = nn.Dropout2d(.3),nn.BatchNorm2d(nf)
    def forward(self, x):
        t = x.flatten(2).mT
        t = t+self.attn(t, t, t)[0]+self.lstm(t)[0]
        if self.training: t = t*(torch.rand(len(t), 1, 1)>.4)
        return self.norm(self.drop(F.dropout(t.mT.unflatten(2, x.shape[2:]), .2, self.training)))

def drawing(obj, seed=0):
    torch.manual_seed(seed)
    return obj.prepare(create_encoder(nn.Sequential(*conv_body(bn=True), Drawing(12))))

def answers(obj, views):
    "What the teacher says of `views`, by whichever way the objective asks it"
    with torch.no_grad():
        if isinstance(obj, Objective.registry['densecl']): return torch.cat([o.flatten() for o in obj.embed(obj.ema.encoder, views[1], obj.ema)])
        return torch.cat(obj.teach(views[obj.teacher_views])).flatten()

@pytest.mark.parametrize('name', teachers)
def test_a_teacher_does_not_draw(name):
    "Whatever is called: `objective.train()`, `.eval()`, a forward, a step; and its norms have its student's mode"
    obj,enc = ready(name, drawing)
    views = views_of(obj, batch()[0])
    norms = lambda m: [o for o in m.modules() if isinstance(o, nn.modules.batchnorm._BatchNorm)]
    def _check():
        a,b = answers(obj, views),answers(obj, views)
        assert torch.allclose(F.cosine_similarity(a, b, dim=0), torch.ones(()), atol=1e-6)
        assert [o.training for o in norms(obj.ema.encoder)]==[o.training for o in norms(enc)]
        assert [o.training for o in norms(obj.ema.projector)]==[o.training for o in norms(obj.projector)]
        assert not any(o.training for o in obj.ema.modules() if not isinstance(o, nn.modules.batchnorm._BatchNorm))
    _check()
    for f in (obj.train, lambda: obj.ema.train(), enc.eval, obj.eval, enc.train, obj.train):
        f()
        _check()
    term_of(obj, enc).backward()
    obj.after_step(enc)
    _check()
    norms(enc)[1].eval()
    assert sum(o.training for o in norms(enc))==len(norms(enc))-1
    _check()

@pytest.mark.parametrize('name', teachers)
def test_a_teacher_beside_frozen_norms(name):
    "fastai's BnFreeze and `freeze`: the teacher's norms stand still with the student's, and then answer as the student's do"
    obj = make(name, momentum=1., momentum_end=1.)
    if name!='densecl': obj.momentum,obj.momentum_end = 1.,1.
    dls,bodies = make_dls(n=16, size=size),[]
    learn = contrastive_learner(dls, conv_body(bn=True), obj, opt_func=SGD, cbs=BnFreeze())
    for m in learn.model[0].modules():
        if isinstance(m, nn.BatchNorm2d): m.requires_grad_(False), m.running_mean.add_(1.), m.running_var.mul_(3.)
    seen,x = [],batch()[0]
    def _look(learn):
        with torch.no_grad(): seen.append(F.cosine_similarity(*[m(x).flatten() for m in (learn.model[0],obj.ema.encoder)], dim=0))
    fit(learn.add_cb(At('after_loss', _look)), 1, 'fit', 0.)
    assert torch.allclose(seen[0], torch.ones(()), atol=1e-6)
    for m in obj.ema.encoder.modules():
        if isinstance(m, nn.BatchNorm2d): assert m.num_batches_tracked==0

# One encoder

@each
def test_another_encoder_is_refused(name):
    "One of the same shape, with what to do; the same in a new wrapper, frozen, or moved, is the same"
    obj,enc = ready(name)
    other = conv(obj, seed=1)
    with pytest.raises(ValueError, match=f'{name} was set up for another encoder.*use a new {type(obj).__name__}.*load_state_dict'): obj.set_up(other)
    for o in (Encoder(enc.body), enc.requires_grad_(False), enc.to(torch.float32), enc.eval()): assert obj.set_up(o) is obj
    del enc,o
    import gc; gc.collect()
    with pytest.raises(ValueError, match=f'{name} was set up for another encoder'): obj.set_up(other)
    obj.unbind()
    assert obj.set_up(other) is obj
    with pytest.raises(ValueError, match=f'{name} was set up for another encoder'): obj.set_up(conv(obj, seed=2))

@each
def test_copies_go_with_their_encoder(name):
    "Copied together they stay together; copied alone an objective is free for one encoder; and it is no heavier when pickled"
    obj,enc = ready(name)
    for order in (1,-1):
        both = deepcopy(dict([('obj',obj),('enc',enc)][::order]))
        assert both['obj'].set_up(both['enc']) is both['obj']
        with pytest.raises(ValueError, match='was set up for another encoder'): both['obj'].set_up(enc)
        if obj.teacher:
            both['enc'].eval()
            both['obj'].ema.encoder
            assert all(o() is None or any(o() is m for m in both['enc'].modules()) for o in both['obj'].ema.pairs['encoder'][1].refs)
    alone = deepcopy(obj)
    assert alone.set_up(conv(obj, seed=1)) is alone
    with pytest.raises(ValueError, match='was set up for another encoder'): alone.set_up(enc)
    b = io.BytesIO()
    torch.save(obj, b)
    b.seek(0)
    assert torch.load(b, weights_only=False).set_up(conv(obj, seed=1))

@each
def test_a_callback_goes_on_from_a_checkpoint(name):
    "Not with another model by itself; with one after `load_state_dict`; a copied learner goes on by itself"
    dls,cb = make_dls(n=16, size=size),ContrastiveCallback(make(name))
    learn = fit(contrastive_learner(dls, conv_body(), cb.objective))
    cb = learn._grab_cbs(ContrastiveCallback)[0]
    fit(deepcopy(learn))
    fit(learn)
    fresh = ContrastiveCallback(cb.objective)
    with pytest.raises(ValueError, match=f'{name} was set up for another encoder'): fit(Learner(dls, ViewsOnly(conv(cb.objective, seed=1)), loss_func=TermOnly(), cbs=fresh))
    other = contrastive_learner(dls, conv_body(), make(name))
    new = other._grab_cbs(ContrastiveCallback)[0]
    new.load_state_dict(cb.state_dict())
    fit(other)

def test_a_compiled_encoder_is_the_same_encoder():
    obj,enc = ready('byol', partial(conv, bn=True))
    obj.set_up(Encoder(torch.compile(enc.body, backend='eager')))
    assert obj.ema.watches

# Names

@each
def test_repr(name):
    "Short, evaluates back, and shows the settings that are not the defaults"
    cls = Objective.registry[name]
    assert repr(cls())==f'{cls.__name__}()'
    obj = make(name)
    again = eval(repr(obj), {cls.__name__:cls})
    assert repr(again)==repr(obj) and len(repr(obj))<120 and '\n' not in repr(obj)
    for k,_ in settings_of(name): assert not hasattr(obj, k) or getattr(obj,k)==getattr(again,k), k
    ready_obj = ready(name)[0]
    assert repr(ready_obj)==repr(obj)==repr(deepcopy(ready_obj))

def test_repr_shows_what_is():
    o = Objective.registry['simclr'](.7)
    assert repr(o)=='SimCLR(temp=0.7)'
    o.temp = .2
    assert repr(o)=='SimCLR()'
    o.hidden = 64
    assert repr(o)=='SimCLR(hidden=64)'

def passes(m, f):
    "Shapes of the batches that go through the first layer of `m` while `f` runs"
    seen,first_layer = [],next(o for o in m.modules() if isinstance(o, nn.Conv2d))
    h = first_layer.register_forward_hook(lambda _,x,y: seen.append((len(x[0]), *x[0].shape[-2:])))
    try: f()
    finally: h.remove()
    return seen

@pytest.mark.parametrize('name', [o for o in names if Objective.registry[o].teacher])
def test_no_pass_is_made_twice_or_for_nothing(name):
    "One pass for each size of the student's views and one for the teacher's, of those views alone, each of which the loss feels"
    obj,x = make(name),torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    enc = conv(obj)
    obj.set_up(enc)
    views = obj.views()(x)
    want = lambda vs: sorted((4*n, s, s) for s,n in Counter(v.shape[-1] for v in vs).items())
    assert sorted(passes(enc, lambda: obj(enc, views, None)))==want(views[obj.student_views])
    assert sorted(passes(obj.ema.encoder, lambda: obj(enc, views, None)))==want(views[obj.teacher_views])
    obj.eval()
    loss = same_draws(lambda vs: obj(enc, vs, None))
    for i,v in enumerate(views):
        other = [o.flip(0) if i==j else o for j,o in enumerate(views)]
        assert not torch.equal(loss(views), loss(other)), f'view {i} of {len(views)}'
