"DINO against its paper's pseudo-code, written out"
import math, pytest, torch
from utils import *
from fastai_contrastive.objectives.dino import *
from fastai_contrastive.views import *

def dino(**kwargs):
    torch.manual_seed(0)
    o = DINO(**{**dict(n_prototypes=7, hidden=9, bottleneck=6), **kwargs})
    enc = create_encoder(plain_body())
    o.set_up(enc).train()
    with torch.no_grad(): o.ema.prototypes.weight.copy_(torch.randn(7, 6)) # So that the teacher is another
    o.epoch,o.pct_train = 5,.5
    return o,enc

def unit(v): return v/v.norm()
def scores(z, w): return torch.stack([torch.stack([unit(a.double())@unit(c.double()) for c in w.detach()]) for a in z])
def softmax(v): return v.exp()/v.exp().sum()

def by_hand(o, z, t, center, temp, teacher_temp):
    total,n = 0.,0
    for i,a in enumerate(t):
        for j,b in enumerate(z):
            if i==j: continue
            g,h = scores(a, o.ema.prototypes.weight),scores(b, o.prototypes.weight)
            total += -sum((softmax((g[r]-center)/teacher_temp)*softmax(h[r]/temp).log()).sum().item() for r in range(len(a)))/len(a)
            n += 1
    return total/n

@pytest.mark.parametrize('bs,n_views,temp,teacher_temp', [(5,2,.1,.07), (8,4,.2,.04), (3,3,1.,.5)])
def test_loss_and_center_over_steps(bs, n_views, temp, teacher_temp):
    "Each step uses the centre that the earlier ones left, from zero"
    o,_ = dino(temp=temp, teacher_temp=teacher_temp, center_momentum=.8)
    center = torch.zeros(7).double()
    for _ in range(4):
        z,t = [torch.randn(bs, 6)*(i+1) for i in range(n_views)],[torch.randn(bs, 6)*5 for _ in range(2)]
        assert abs(o.loss(z, t, None).item()-by_hand(o, z, t, center, temp, teacher_temp))<1e-5
        center = .8*center + .2*torch.cat([scores(a, o.ema.prototypes.weight) for a in t]).mean(0)
        close(o.center.mean[0], center.float(), 1e-6)

@pytest.mark.parametrize('bs,n_views,teacher_temp', [(5,2,.1), (7,4,.05)])
def test_balanced_instead_of_centred(bs, n_views, teacher_temp):
    "DINOv2's answers: three rounds over the rows of both large views, each with columns and then rows of one sum"
    o,_ = dino(balance='sinkhorn', teacher_temp=teacher_temp)
    z,t = [torch.randn(bs, 6) for _ in range(n_views)],[torch.randn(bs, 6)*5 for _ in range(2)]
    q = (torch.cat([scores(a, o.ema.prototypes.weight) for a in t])/teacher_temp).exp()
    for _ in range(3):
        q = q/q.sum(0)/q.shape[1]
        q = q/q.sum(1, keepdim=True)/len(q)
    q = (q*len(q)).split(bs)
    h = [torch.stack([softmax(r/o.temp).log() for r in scores(b, o.prototypes.weight)]) for b in z]
    want = [-(a*b).sum(1).mean() for i,a in enumerate(q) for j,b in enumerate(h) if i!=j]
    assert abs(o.loss(z, t, None).item()-sum(want).item()/len(want))<1e-5

def test_no_state_changes_in_validation():
    o,_ = dino()
    o.pct_train = 0.
    was = ws(o).clone()
    o.eval().loss([torch.randn(4, 6)]*2, [torch.randn(4, 6)]*2, None)
    assert torch.equal(was, ws(o))

def test_who_sees_what():
    "The teacher the two large views, the student all; and each its own weights"
    o,enc = dino(teacher_temp=.5)
    seen = {'student':[], 'teacher':[]}
    enc.register_forward_hook(lambda m,i,out: seen['student'].append((tuple(i[0].shape[-2:]), len(i[0]))))
    o.ema.encoder.register_forward_hook(lambda m,i,out: seen['teacher'].append((tuple(i[0].shape[-2:]), len(i[0]))))
    with torch.no_grad(): # Another teacher in all of its parts
        for p in o.ema.parameters(): p.add_(torch.randn_like(p)*.1)
    views = Views(n=2, n_small=3)(images(4, 32)[0])
    c = o(enc, views)
    assert seen==dict(student=[((32,32),8),((16,16),12)], teacher=[((32,32),8)])
    z,t = [o.projector(enc(v)) for v in views],[o.ema.projector(o.ema.encoder(v)) for v in views[:2]]
    assert abs(c.item()-by_hand(o, z, t, torch.zeros(7), .1, .5))<1e-5

def test_teacher_follows_in_all_parts():
    "Encoder, head and last layer, by the momentum of the step: a half cosine from .9 to 1"
    o,enc = dino(momentum=.9)
    parts = lambda: [(enc,o.ema.encoder),(o.projector,o.ema.projector),(o.prototypes,o.ema.prototypes)]
    for pct in (0.,.25,.5,1.):
        with torch.no_grad():
            for s,_ in parts():
                for p in s.parameters(): p.add_(torch.randn_like(p))
        m = 1-(1-.9)*(math.cos(math.pi*pct)+1)/2
        want = [m*t.detach()+(1-m)*s.detach() for a,b in parts() for s,t in zip(a.parameters(), b.parameters())]
        o.pct_train = pct
        o.after_step(enc)
        for w,(_,t) in zip(want, [(s,t) for a,b in parts() for s,t in zip(a.parameters(), b.parameters())]): close(t, w, 1e-6)

def test_teacher_temp_schedule():
    o,_ = dino(warmup_temp=.04, teacher_temp=.07, warmup=.2)
    for pct,want in ((0,.04),(.05,.0475),(.1,.055),(.2,.07),(.6,.07),(1,.07)):
        o.pct_train = pct
        assert abs(o.now_temp-want)<1e-9
    o,_ = dino(warmup=0)
    o.pct_train = 0.
    assert o.now_temp==.07

def test_the_schedule_is_used():
    o,_ = dino(warmup_temp=.1, teacher_temp=.9, warmup=.5)
    z,t = [torch.randn(4, 6) for _ in range(2)],[torch.randn(4, 6) for _ in range(2)]
    o.pct_train = .25
    assert abs(o.eval().loss(z, t, None).item()-by_hand(o, z, t, torch.zeros(7), .1, .5))<1e-5

def test_frozen_at_first():
    "In the first epoch of the first fit no gradient reaches the last layer; the embeddings have theirs"
    def _grad(o, epoch, pct=.1):
        o.prototypes.zero_grad()
        o.epoch,o.pct_train = epoch,pct
        z = [torch.randn(4, 6, requires_grad=True) for _ in range(2)]
        o.loss(z, [torch.randn(4, 6)]*2, None).backward()
        assert z[0].grad.abs().sum()>0
        return o.prototypes.weight.grad
    o,_ = dino(freeze=2)
    assert _grad(o, 0, 0.) is None and _grad(o, 1) is None and _grad(o, 2) is not None
    assert _grad(o, 0, 0.) is not None, 'a second fit freezes nothing'
    b,_ = dino(freeze=2)
    b.load_state_dict(o.state_dict())
    assert _grad(b, 1) is not None, 'which fit it is belongs to the state'
    assert _grad(dino(freeze=0)[0], 0, 0.) is not None

def test_a_first_fit_of_one_epoch():
    "Head and teacher learn, the last layer stands still, with weight decay too"
    learn = contrastive_learner(make_dls(n=16, size=32), plain_body(), DINO(n_prototypes=5, hidden=8, bottleneck=6, momentum=.5))
    o = learn.dino.objective
    o.set_up(learn.model[0])
    was = {k:v.clone() for k,v in o.state_dict().items()}
    fit(learn, 1, 'fit', .01, wd=.1)
    now = o.state_dict()
    for k in ('prototypes.weight','ema.prototypes.weight'): close(now[k], was[k], 1e-6)
    for k in ('projector.0.weight','ema.projector.0.weight','center.mean'): assert not torch.equal(now[k], was[k]), k

def test_head():
    "Three layers, GELU, batch norm only where asked for; biases of zero, weights of the paper's size"
    kinds = lambda o: [type(m).__name__ for m in o.projector]
    assert kinds(dino()[0])==['Linear','GELU','Linear','GELU','Linear'] and kinds(dino(bn=True)[0])==['Linear','HeadNorm','GELU','Linear','HeadNorm','GELU','Linear']
    o,_ = dino(hidden=400)
    assert abs(o.projector[2].weight.std().item()-.02)<1e-3 and not any(m.bias.any() for m in o.projector if hasattr(m, 'bias'))

@pytest.mark.parametrize('kw', [dict(temp=0), dict(teacher_temp=-1), dict(warmup_temp=0), dict(warmup=1.5), dict(momentum=1.1), dict(momentum_end=-1),
    dict(center_momentum=2), dict(n_prototypes=1), dict(hidden=0), dict(bottleneck=0), dict(freeze=-1), dict(balance='mean')])
def test_bad_settings(kw):
    with pytest.raises(ValueError, match=next(iter(kw))+' must be'): DINO(**kw)

def test_large_views():
    (o,enc),x = dino(),images(4, 32)[0]
    with pytest.raises(ValueError, match='dino needs two large views'): o(enc, Views(n=1, n_small=3)(x))
    with pytest.raises(ValueError, match='at least 2 views'): o(enc, Views(n=1)(x))
    assert torch.isfinite(o(enc, Views(n=2)(x))) and torch.isfinite(o(enc, Views(n=3, n_small=1)(x)))

def test_fits_are_counted_where_the_weight_begins_at_zero():
    cb = ContrastiveCallback(DINO(n_prototypes=5, hidden=8, bottleneck=6), weight=SchedCos(0., 1.))
    learn = make_learn(cb, make_dls(size=32))
    assert [fit(learn).dino.objective.fit_count.n.item() for _ in range(3)]==[1,2,3]
