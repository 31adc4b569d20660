"MoCo against the pseudo-code of arXiv 1911.05722, one query and one key at a time"
import math, pytest
from utils import *
from fastai_contrastive.objectives.moco import *

def unit(rows): return [r.double()/r.double().norm() for r in rows]

def nce_by_hand(q, k, queue, temp):
    "The paper's equation 1, with the positive among the candidates"
    total = 0.
    for a,b in zip(unit(q), unit(k)):
        e = [math.exp((a@o).item()/temp) for o in [b,*unit(queue)]]
        total += -math.log(e[0]/sum(e))
    return total/len(q)

def ring(size, start, batches):
    "What a queue holds after `batches`, written one key after another"
    items,at = [*start],0
    for b in batches:
        for k in b:
            items[at] = k/k.norm()
            at = (at+1)%size
    return torch.stack(items)

def moco(nf=5, **kwargs): return built(MoCo(**{**dict(dim=4, queue_size=11, momentum=.75), **kwargs}), nf)

@pytest.mark.parametrize('n', [2,5,11])
@pytest.mark.parametrize('temp', [.07,.2])
def test_loss(n, temp):
    o = moco(temp=temp)
    z,t,queue = torch.randn(n,4),torch.randn(n,4)*3,o.queue.items.clone()
    assert abs(o.loss([z], [t], None).item()-nce_by_hand(z, t, queue, temp))<1e-5

def test_symmetric_loss():
    "Each query meets the key of the other view, and the mean of the two keeps the scale"
    o = moco(symmetric=True, temp=.2)
    z,t,queue = [torch.randn(3,4) for _ in range(2)],[torch.randn(3,4) for _ in range(2)],o.queue.items.clone()
    want = (nce_by_hand(z[0], t[1], queue, .2)+nce_by_hand(z[1], t[0], queue, .2))/2
    assert abs(o.loss(z, t, None).item()-want)<1e-5

@pytest.mark.parametrize('ns', [[3,4,5,2,7],[11,1,11],[6,6,6]])
@pytest.mark.parametrize('symmetric', [False,True])
def test_queue_in_order(ns, symmetric):
    o = moco(queue_size=23, symmetric=symmetric)
    start,keys = o.queue.items.clone(),[]
    for n in ns:
        t = [torch.randn(n,4) for _ in range(1+symmetric)]
        o.loss([torch.randn(n,4) for _ in t], t, None)
        keys += t
    assert torch.allclose(o.queue.items, ring(23, start, keys), atol=1e-6)
    assert o.queue.at==sum(ns)*(1+symmetric)%23

def test_keys_enter_after_the_loss():
    "A batch's keys are not among its negatives, and they are among the next one's"
    o = moco(temp=.2)
    t,start = torch.randn(6,4),o.queue.items.clone()
    for queue in (start, ring(11, start, [t])): assert abs(o.loss([t], [t], None).item()-nce_by_hand(t, t, queue, .2))<1e-5

def views(n, seed): return [o for o in torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed))]

class Linear(nn.Linear):
    nf = 6

@pytest.mark.parametrize('symmetric', [False,True])
def test_three_steps(symmetric):
    "Weights, teacher and queue as in the authors' loop, which moves the teacher before it makes the keys"
    torch.manual_seed(0)
    enc = Linear(5, 6, bias=False)
    o = MoCo(dim=4, queue_size=11, momentum=.75, symmetric=symmetric)
    o.set_up(enc).train()
    q_net = deepcopy(nn.Sequential(enc, o.projector))
    k_net,queue,keys = deepcopy(q_net),o.queue.items.clone(),[]
    start = queue.clone()
    opt = torch.optim.SGD([p for m in (enc,o) for p in m.parameters() if p.requires_grad], lr=.1)
    by_hand = torch.optim.SGD(q_net.parameters(), lr=.1)
    for i,n in enumerate((3,5,2)):
        a,b = views(n, i)
        o.pct_train = i/3
        o(enc, [a,b]).backward()
        opt.step()
        opt.zero_grad()
        o.after_step(enc)
        with torch.no_grad():
            for p,s in zip(k_net.parameters(), q_net.parameters()): p.copy_(.75*p+.25*s)
            ks = [k_net(b)]+[k_net(a)]*symmetric
        loss = 0.
        for x,k in zip((a,b), ks):
            q,k = F.normalize(q_net(x), dim=1),F.normalize(k, dim=1)
            logits = torch.stack([torch.stack([u@v, *(queue@u)])/.2 for u,v in zip(q,k)])
            loss = loss - logits.log_softmax(1)[:,0].mean()/len(ks)
        loss.backward()
        by_hand.step()
        by_hand.zero_grad()
        keys += ks[::-1]
        queue = ring(11, start, keys)
    assert torch.allclose(ws(nn.Sequential(enc, o.projector)), ws(q_net), atol=1e-5)
    assert torch.allclose(o.queue.items, queue, atol=1e-5)
    for p,s in zip(k_net.parameters(), q_net.parameters()): p.data.copy_(.75*p+.25*s)
    assert torch.allclose(ws(nn.Sequential(o.ema.encoder, o.ema.projector)), ws(k_net), atol=1e-5)

def test_momentum_is_constant():
    enc = Linear(5, 6)
    o = MoCo(dim=4, queue_size=11, momentum=.75).set_up(enc)
    was = enc.weight.detach().clone()
    with torch.no_grad(): enc.weight += 1
    for i,pct in enumerate((0.,.5,1.), 1):
        o.pct_train = pct
        o.after_step(enc)
        assert torch.allclose(o.ema.encoder.weight, was+1-.75**i, atol=1e-6)

def test_no_gradient_to_keys():
    o = moco()
    z,t = torch.randn(3,4).requires_grad_(),torch.randn(3,4)
    o.loss([z], [t], None).backward()
    assert z.grad.abs().sum()>0 and not o.queue.items.requires_grad

def test_eval_changes_nothing():
    "No key enters at validation, whose batches may be larger than the queue"
    enc = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    enc.nf = 6
    o = MoCo(dim=4, queue_size=11).set_up(enc).eval()
    enc.eval()
    was = ws(o).clone()
    assert torch.isfinite(o(enc, views(12, 0)))
    assert torch.equal(ws(o), was)

@pytest.mark.parametrize('kwargs,say', [(dict(temp=0), 'temp must be above 0: got 0'), (dict(momentum=1.1), 'momentum must be from 0 to 1: got 1.1'),
                                        (dict(queue_size=0), 'queue_size must be 1 or more: got 0')])
def test_bad_settings(kwargs, say):
    with pytest.raises(ValueError, match=say): MoCo(**kwargs)

def test_queue_too_small():
    with pytest.raises(ValueError, match='keys of a batch, 12: got 11; raise queue_size or lower bs'): moco().loss([torch.randn(12,4)], [torch.randn(12,4)], None)
    with pytest.raises(ValueError, match='keys of a batch, 12: got 11'): moco(symmetric=True).loss([torch.randn(6,4)]*2, [torch.randn(6,4)]*2, None)

@pytest.mark.parametrize('symmetric,bs', [(False,12), (True,6)])
def test_queue_too_small_is_said_before_a_batch_is_drawn(symmetric, bs):
    def learner(bs, n=24): return make_learn(term(objective=MoCo(dim=4, queue_size=11, symmetric=symmetric), views=throw(KeyError('drawn'))), make_dls(n, bs))
    with pytest.raises(ValueError, match='keys of a batch, 12: got 11; raise queue_size or lower bs'): fit(learner(bs))
    with pytest.raises(KeyError, match='drawn'): fit(learner(bs-1))
    with pytest.raises(KeyError, match='drawn'): fit(learner(64, 5)) # there are no more images than these
