"SwAV against its paper's equations, written out"
import pytest, torch
from utils import *
from fastai_contrastive.objectives.swav import *
from fastai_contrastive.views import *

def swav(**kwargs):
    torch.manual_seed(0)
    o = SwAV(**{**dict(n_prototypes=7, dim=6, hidden=9, queue_size=0), **kwargs})
    o.build(12)
    o.epoch,o.pct_train = 5,.5
    return o.train()

def unit(v): return v/v.norm()

def by_hand(sim, eps, iters):
    "The paper's pseudo-code: a (prototypes, images) matrix, scaled row by row and column by column"
    Q = (sim.double()/eps).exp().T.clone()
    K,B = Q.shape
    Q /= Q.sum()
    for _ in range(iters):
        for k in range(K): Q[k] /= Q[k].sum()*K
        for b in range(B): Q[:,b] /= Q[:,b].sum()*B
    return (Q*B).T

def sims_by_hand(z, o): return torch.stack([torch.stack([unit(a.double())@unit(c.double()) for c in o.prototypes.weight.detach()]) for a in z])

@pytest.mark.parametrize('bs,n_views,eps,iters,temp', [(5,2,.05,3,.1), (8,4,.1,5,.3), (3,3,.05,1,.2)])
def test_loss(bs, n_views, eps, iters, temp):
    o = swav(eps=eps, iters=iters, temp=temp)
    z = [torch.randn(bs, 6)*(i+1) for i in range(n_views)]
    s,total = [sims_by_hand(a, o) for a in z],0.
    for t in range(2):
        q = by_hand(s[t], eps, iters)
        for v in range(n_views):
            if v==t: continue
            for b in range(bs):
                e = (s[v][b]/temp).exp()
                total -= sum(q[b,k]*(e[k]/e.sum()).log() for k in range(7)).item()/bs
    assert abs(o.loss(z, None, None).item()-total/(2*(n_views-1)))<1e-5

def test_assignments_are_balanced():
    "Rows sum to one; with many rounds every prototype gets an equal share"
    q = swav(iters=60, eps=.2).assign(torch.randn(35, 6))
    close(q.sum(1), torch.ones(35), 1e-5)
    close(q.sum(0), torch.full((7,), 5.), 1e-2)

def test_queue_in_order():
    "Each large view has its own; the newest replace the oldest, with sizes that do not divide; small views stay out"
    o = swav(queue_size=8)
    zs = [[torch.randn(n, 6)*3 for _ in range(3)] for n in (5,2,4,11)]
    for z in zs: o.loss(z, None, None)
    for i in range(2):
        want = torch.cat([z[i] for z in zs])[-8:]
        at = int(o.queues[i].at)
        close(o.queues[i].items.roll(-at, 0), torch.stack([unit(r) for r in want]), 1e-6)

def test_queue_joins_when_full():
    o,z = swav(queue_size=8, queue_start=3),torch.randn(5, 6)
    o.assign(torch.randn(6, 6), 1)
    close(o.eval().assign(z, 1), by_hand(sims_by_hand(z, o), .05, 3).float(), 1e-5) # 6 of 8: not yet
    o.train().assign(torch.randn(4, 6), 1)
    old = o.queues[1].items.clone()
    both = by_hand(sims_by_hand(torch.cat([old, z]), o), .05, 3)[8:].float()
    assert (both-by_hand(sims_by_hand(z, o), .05, 3)).abs().max()>.01
    close(o.eval().assign(z, 1), both, 1e-5)
    close(o.assign(z, 0), by_hand(sims_by_hand(z, o), .05, 3).float(), 1e-5) # The other view's is empty
    o.epoch = 2
    close(o.assign(z, 1), by_hand(sims_by_hand(z, o), .05, 3).float(), 1e-5)
    assert torch.equal(o.queues[1].items, old), 'it moved in eval mode'

def test_batch_is_not_in_its_own_queue():
    "The batch joins the balancing once, then the queue"
    o,z = swav(queue_size=4, queue_start=0),torch.randn(4, 6)
    o.assign(torch.randn(4, 6))
    old = o.queues[0].items.clone()
    close(o.assign(z), by_hand(sims_by_hand(torch.cat([old, z]), o), .05, 3)[4:].float(), 1e-5)

def test_gradient_goes_through_the_predictions_alone():
    o,z = swav(),[torch.randn(5, 6, requires_grad=True) for _ in range(2)]
    o.loss(z, None, None).backward()
    got = z[0].grad.clone()
    w = o.prototypes.weight.detach().double()
    q = by_hand(sims_by_hand(z[1].detach(), o), .05, 3)
    a = z[0].detach().double().requires_grad_()
    p = ((a/a.norm(dim=1, keepdim=True))@(w/w.norm(dim=1, keepdim=True)).T/.1).log_softmax(1)
    (-(q*p).sum(1).mean()/2).backward() # z[0] appears in the prediction of the second view's assignment, and nowhere else
    close(got, a.grad.float(), 1e-6)

def test_frozen_at_first():
    "In the first epoch of the first fit no gradient reaches the prototypes; the embeddings have theirs"
    def _grad(o, epoch, pct=.1):
        o.prototypes.zero_grad()
        o.epoch,o.pct_train = epoch,pct
        z = [torch.randn(4, 6, requires_grad=True) for _ in range(2)]
        o.loss(z, None, None).backward()
        assert z[0].grad.abs().sum()>0
        return o.prototypes.weight.grad
    o = swav(freeze=2)
    assert _grad(o, 0, 0.) is None and _grad(o, 1) is None and _grad(o, 2) is not None
    assert _grad(o, 0, 0.) is not None, 'a second fit freezes nothing'
    b = swav(freeze=2)
    b.load_state_dict(o.state_dict())
    assert _grad(b, 1) is not None, 'which fit it is belongs to the state'
    assert _grad(swav(freeze=0), 0, 0.) is not None

def test_short_fits():
    "The prototypes of a learner: still in a first fit of one epoch, with weight decay too; not in the next, and of length one"
    learn = contrastive_learner(make_dls(n=16, size=32), plain_body(), SwAV(n_prototypes=5, dim=6, queue_size=4))
    o = learn.swav.objective
    o.set_up(learn.model[0])
    w,proj = o.prototypes.weight.detach().clone(),ws(o.projector)
    fit(learn, 1, 'fit', .01, wd=.1)
    close(o.prototypes.weight.detach(), w, 1e-6)
    assert not torch.equal(proj, ws(o.projector))
    fit(learn, 1, 'fit', .01, wd=.1)
    assert (o.prototypes.weight-w).abs().max()>1e-3
    close(o.prototypes.weight.detach().norm(dim=1), torch.ones(5), 1e-5)

@pytest.mark.parametrize('kw', [dict(temp=0), dict(eps=-1), dict(n_prototypes=1), dict(iters=0), dict(dim=0), dict(queue_size=-1), dict(freeze=-1), dict(queue_start=-1)])
def test_bad_settings(kw):
    with pytest.raises(ValueError, match=next(iter(kw))+' must be'): SwAV(**kw)

def test_large_views():
    x = images(4, 32)[0]
    o,enc = swav(),create_encoder(plain_body())
    o.nf = None
    o.set_up(enc)
    with pytest.raises(ValueError, match='swav needs two large views'): o(enc, Views(n=1, n_small=3)(x))
    with pytest.raises(ValueError, match='at least 2 views'): o(enc, Views(n=1)(x))
    assert torch.isfinite(o(enc, Views(n=2)(x))) and torch.isfinite(o(enc, Views(n=3, n_small=1)(x)))
