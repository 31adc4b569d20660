"ReSSL against equations 2 to 4 of arXiv 2107.09282, one pair at a time"
import math, pytest
from utils import *
from fastai_contrastive.views import *
from fastai_contrastive.objectives.ressl import *

def unit(rows): return [r.double()/r.double().norm() for r in rows]

def softmax(xs):
    e = [math.exp(x) for x in xs]
    return [o/sum(e) for o in e]

def relation(z, queue, temp): return [softmax([(a@k).item()/temp for k in unit(queue)]) for a in unit(z)]

def ressl_by_hand(z, t, queue, ts, tt):
    ps,pt = relation(z, queue, ts),relation(t, queue, tt)
    return sum(-sum(b*math.log(a) for a,b in zip(s,u)) for s,u in zip(ps,pt))/len(ps)

def ring(size, start, batches):
    items,at = [*start],0
    for b in batches:
        for k in b:
            items[at] = k/k.norm()
            at = (at+1)%size
    return torch.stack(items)

def ressl(**kwargs): return built(ReSSL(**{**dict(dim=4, hidden=7, queue_size=11, momentum=.75), **kwargs}), 5)

@pytest.mark.parametrize('n', [2,5,11])
@pytest.mark.parametrize('ts,tt', [(.1,.04), (.5,.2)])
def test_loss(n, ts, tt):
    o = ressl(temp=ts, teacher_temp=tt)
    z,t,queue = torch.randn(n,4),torch.randn(n,4)*3,o.queue.items.clone()
    assert o.loss([z], [t], None).item()==pytest.approx(ressl_by_hand(z, t, queue, ts, tt), rel=1e-5)

def test_more_strong_views():
    "Each is held to the one target; the queue gets the plain view's embeddings once"
    o = ressl()
    zs,t,queue = [torch.randn(3,4) for _ in range(3)],torch.randn(3,4),o.queue.items.clone()
    assert o.loss(zs, [t], None).item()==pytest.approx(np.mean([ressl_by_hand(z, t, queue, .1, .04) for z in zs]), rel=1e-5)
    assert torch.allclose(o.queue.items, ring(11, queue, [t]), atol=1e-6)

@pytest.mark.parametrize('ns', [[3,4,5,2,7],[11,1,11],[6,6,6]])
def test_queue_in_order(ns):
    o = ressl()
    start,keys = o.queue.items.clone(),[torch.randn(n,4) for n in ns]
    for i,k in enumerate(keys):
        c = o.loss([torch.randn(len(k),4)], [k], None)
        assert torch.allclose(o.queue.items, ring(11, start, keys[:i+1]), atol=1e-6)
    assert o.queue.at==sum(ns)%11

def test_embeddings_enter_after_the_loss():
    o = ressl()
    t,start = torch.randn(6,4),o.queue.items.clone()
    z = torch.randn(6,4)
    for queue in (start, ring(11, start, [t])): assert o.loss([z], [t], None).item()==pytest.approx(ressl_by_hand(z, t, queue, .1, .04), rel=1e-5)

class Linear(nn.Linear):
    nf = 6

def views(n, seed): return list(torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed)))

def test_three_steps():
    "Weights, teacher and queue as in a loop of its own, which moves the teacher before it asks it, as the authors do"
    torch.manual_seed(0)
    enc = Linear(5, 6, bias=False)
    o = ReSSL(dim=4, hidden=7, queue_size=11, momentum=.75)
    o.set_up(enc).train()
    q_net = deepcopy(nn.Sequential(enc, o.projector))
    k_net,start,keys = deepcopy(q_net),o.queue.items.clone(),[]
    queue = start
    opt,by_hand = (torch.optim.SGD([p for m in ms for p in m.parameters() if p.requires_grad], lr=.1) for ms in ((enc,o), (q_net,)))
    def follow():
        with torch.no_grad():
            for p,s in zip(k_net.parameters(), q_net.parameters()): p.copy_(.75*p+.25*s)
    for i,n in enumerate((3,5,7)):
        plain,strong = views(n, i)
        o.pct_train = i/3
        o(enc, [plain,strong]).backward()
        opt.step()
        opt.zero_grad()
        o.after_step(enc)
        follow()
        with torch.no_grad(): t = F.normalize(k_net(plain), dim=1)
        logits = F.normalize(q_net(strong), dim=1)@queue.T/.1
        loss = -((t@queue.T/.04).exp()/(t@queue.T/.04).exp().sum(1, keepdim=True)*(logits-logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
        loss.backward()
        by_hand.step()
        by_hand.zero_grad()
        keys.append(t)
        queue = ring(11, start, keys)
    assert torch.allclose(ws(nn.Sequential(enc, o.projector)), ws(q_net), atol=1e-5)
    assert torch.allclose(o.queue.items, queue, atol=1e-5)
    follow()
    assert torch.allclose(ws(nn.Sequential(o.ema.encoder, o.ema.projector)), ws(k_net), atol=1e-5)

def test_no_gradient_to_the_target():
    o = ressl()
    z,t = torch.randn(3,4).requires_grad_(),torch.randn(3,4)
    o.loss([z], [t], None).backward()
    assert z.grad.abs().sum()>0 and not o.queue.items.requires_grad

def test_eval_changes_nothing():
    "Nothing enters at validation, whose batches may be larger than the queue"
    enc = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).eval()
    enc.nf = 6
    o = ReSSL(dim=4, hidden=7, queue_size=11).set_up(enc).eval()
    was = ws(o).clone()
    assert torch.isfinite(o(enc, views(12, 0)))
    assert torch.equal(ws(o), was)

def test_views():
    "The first keeps its colours and its sharpness; settings, `but` and small views go through"
    x = torch.rand(6,1,1,1).expand(6,3,16,16).clone()
    v = ReSSL().views().but(n=3, n_small=1, small_size=8, p_jitter=1., brightness=.9, p_solarize=1., scale=(.5,1.))
    assert type(v) is PlainFirst and v.scale==(.5,1.)
    out = v(x)
    assert torch.allclose(out[0], x, atol=1e-5)
    assert [o.shape[-1] for o in out]==[16,16,16,8]
    assert all((o.mean((1,2,3))-x.mean((1,2,3))).abs().max()>.05 for o in out[1:])
    p = v.draw(6, 16, 16, 0)
    assert p.colour is None and p.sigma is None and p.solarize is None and len(p.box)==6
    assert all(o is not None for o in (lambda p: (p.colour,p.sigma,p.solarize))(v.draw(6, 16, 16, 1)))

def test_teacher_sees_the_plain_view():
    "And the student all the others"
    seen = {}
    class Log(Linear):
        def forward(self, x):
            seen.setdefault('teacher' if not self.weight.requires_grad else 'student', []).append(x)
            return super().forward(x)
    enc = Log(5, 6)
    o = ReSSL(dim=4, hidden=7, queue_size=11).set_up(enc).train()
    vs = list(torch.randn(3,4,5))
    o(enc, vs)
    assert torch.equal(seen['teacher'][0], vs[0]) and torch.equal(seen['student'][0], torch.cat(vs[1:]))

@pytest.mark.parametrize('kwargs,say', [(dict(temp=0), 'below temp: got 0.04 and temp 0'), (dict(teacher_temp=.1), 'below temp: got 0.1 and temp 0.1'), (dict(teacher_temp=0), 'above 0'),
                                        (dict(momentum=-.1), 'momentum must be from 0 to 1: got -0.1'), (dict(queue_size=1), 'queue_size must be 2 or more: got 1')])
def test_bad_settings(kwargs, say):
    with pytest.raises(ValueError, match=say): ReSSL(**kwargs)

def test_queue_too_small():
    with pytest.raises(ValueError, match='embeddings of a batch, 12: got 11; raise queue_size or lower bs'): ressl().loss([torch.randn(12,4)], [torch.randn(12,4)], None)

def test_queue_too_small_is_said_before_a_batch_is_drawn():
    def learner(bs): return make_learn(term(objective=ReSSL(dim=4, queue_size=11), views=throw(KeyError('drawn'))), make_dls(24, bs))
    with pytest.raises(ValueError, match='embeddings of a batch, 12: got 11'): fit(learner(12))
    with pytest.raises(KeyError, match='drawn'): fit(learner(11))
