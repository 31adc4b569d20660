"DenseCL against its equations, cell by cell, and its queues and teacher after several steps"
import math, pytest
from utils import *
from fastai_contrastive.encoder import create_encoder
from fastai_contrastive.objectives.densecl import *

def unit(v): return v/v.norm()

def nce(q, k, negs, temp):
    "InfoNCE of one query"
    e = [math.exp((unit(q)@unit(o)).item()/temp) for o in (k, *negs)]
    return -math.log(e[0]/sum(e))

def by_hand(q, r, f, k, s, g, queue, dense_queue, temp, lambd):
    total = 0.
    for i in range(len(q)):
        dense = 0.
        for a in range(r.shape[1]):
            sims = [(unit(f[i,a])@unit(g[i,b])).item() for b in range(g.shape[1])]
            dense += nce(r[i,a], s[i,sims.index(max(sims))], dense_queue, temp)
        total += (1-lambd)*nce(q[i], k[i], queue, temp) + lambd*dense/r.shape[1]
    return total/len(q)

def ready(**kwargs):
    torch.manual_seed(0)
    obj,enc = DenseCL(**{**dict(dim=5, hidden=8, queue_size=11, momentum=.9), **kwargs}),create_encoder(plain_body())
    return obj.set_up(enc).train(),enc.train()

@pytest.mark.parametrize('n,s,lambd,temp', [(1,4,.5,.2), (3,9,.3,.2), (5,1,.7,.07)])
def test_loss_is_the_papers(n, s, lambd, temp):
    obj,_ = ready(lambd=lambd, temp=temp)
    q,k,r,t,f,g = (torch.randn(*o) for o in ((n,5),(n,5),(n,s,5),(n,s,5),(n,s,12),(n,s,12)))
    d = lambda *o: [x.double() for x in o]
    want = by_hand(*d(q,r,f,k,t,g,obj.queue.items,obj.dense_queue.items), temp, lambd)
    assert abs(obj.loss((q,r,f), (k,t,g), None).item()-want)<1e-5

def test_forward_takes_maps_of_both_networks():
    "The term from the encoder's maps, written out, for maps that are averaged down and for maps that are not"
    for grid in (2,7):
        obj,enc = ready(grid=grid)
        with torch.no_grad(): # Another teacher in all of its parts
            for p in obj.ema.parameters(): p.add_(.1*torch.randn_like(p))
        views = [torch.randn(3,3,16,16) for _ in range(2)]
        def embed(e, h, x):
            m = e.maps(x)
            assert m.shape[-2:]==(3,3)
            f = (F.adaptive_avg_pool2d(m, 2) if grid==2 else m).flatten(2).transpose(1,2)
            return h.projector(m.mean((2,3))),h.dense(f),f
        d = [o.detach().double() for e,h,x in ((enc,obj,views[0]), (obj.ema.encoder,obj.ema,views[1])) for o in embed(e,h,x)]
        want = by_hand(*d, obj.queue.items.double(), obj.dense_queue.items.double(), .2, .5)
        assert abs(obj(enc, views).item()-want)<1e-5

def test_queues_hold_the_teachers_keys_in_order():
    obj,enc = ready()
    whole,cells = obj.queue.items.clone(),obj.dense_queue.items.clone()
    at = 0
    for s in range(4):
        views = [torch.randn(4,3,16,16) for _ in range(2)]
        with torch.no_grad(): k,t,_ = obj.embed(obj.ema.encoder, views[1], obj.ema)
        obj(enc, views)
        for i in range(4):
            whole[at],cells[at] = unit(k[i]),unit(t[i].mean(0))
            at = (at+1)%11
        assert torch.allclose(obj.queue.items, whole, atol=1e-6) and torch.allclose(obj.dense_queue.items, cells, atol=1e-6)
        with torch.no_grad():
            for p in (*enc.parameters(), *obj.projector.parameters(), *obj.dense.parameters()): p.add_(.1*torch.randn_like(p))
        obj.after_step(enc)
    obj.eval()
    obj(enc, views)
    assert torch.allclose(obj.queue.items, whole, atol=1e-6) and torch.allclose(obj.dense_queue.items, cells, atol=1e-6)

def test_both_heads_have_a_teacher_of_constant_momentum():
    obj,enc = ready()
    was = {k:deepcopy(getattr(obj.ema,k)) for k in ('projector','dense')}
    with torch.no_grad():
        for p in obj.parameters():
            if p.requires_grad: p.add_(1.)
    for pct in (0.,1.):
        obj.pct_train = pct
        obj.after_step(enc)
    for k,m in was.items():
        for o,t,s in zip(m.parameters(), getattr(obj.ema,k).parameters(), getattr(obj,k).parameters()): assert torch.allclose(t, .81*o+.19*s, atol=1e-6)

def test_gradients_stop_at_keys_and_at_the_correspondence():
    obj,_ = ready()
    z = [torch.randn(*o, requires_grad=True) for o in ((2,5),(2,4,5),(2,4,12))]
    t = [torch.randn(*o) for o in ((2,5),(2,4,5),(2,4,12))]
    obj.loss(z, t, None).backward()
    assert z[0].grad.abs().sum()>0 and z[1].grad.abs().sum()>0 and z[2].grad is None

def test_match_finds_what_was_moved():
    f = torch.randn(2,6,8)
    p = torch.stack([torch.randperm(6) for _ in range(2)])
    moved = torch.stack([o[i] for o,i in zip(f,p)])
    assert torch.equal(dense_match(moved*torch.rand(2,6,1).add(.1), f), p)

@pytest.mark.parametrize('kwargs,msg', [(dict(temp=0),'temp must be above 0'), (dict(lambd=1.5),'lambd must be from 0 to 1'), (dict(grid=0),'grid must be 1'),
    (dict(queue_size=0),'queue_size must be 1')])
def test_bad_settings(kwargs, msg):
    with pytest.raises(ValueError, match=msg): DenseCL(**kwargs)

def test_an_encoder_without_maps_is_refused():
    with pytest.raises(ValueError, match='densecl needs maps.*encoder'): DenseCL().set_up(create_encoder(nn.Sequential(plain_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())))
