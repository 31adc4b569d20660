"MoCo v3 against algorithm 1 of arXiv 2104.02057"
import math, pytest
from utils import *
from fastai_contrastive.objectives.mocov3 import *

def ctr(q, k, temp):
    "The paper's `ctr`, row by row"
    q,k = ([r.double()/r.double().norm() for r in o] for o in (q,k))
    total = 0.
    for i,a in enumerate(q):
        e = [math.exp((a@b).item()/temp) for b in k]
        total += -math.log(e[i]/sum(e))
    return 2*temp*total/len(q)

def make(nf=6, **kwargs): return MoCoV3(**{**dict(dim=4, hidden=7), **kwargs})

def norm_by_hand(x, bn):
    "Batch norm over all rows of both views"
    x = (x-x.mean(0))/(x.var(0, correction=0)+bn.eps).sqrt()
    return x*bn.weight+bn.bias if bn.affine else x

@pytest.mark.parametrize('n', [2,5,8])
@pytest.mark.parametrize('temp', [.2,1.])
def test_loss(n, temp):
    o = built(make(temp=temp)).train()
    z,t = [torch.randn(n,4) for _ in range(2)],[torch.randn(n,4)*3 for _ in range(2)]
    l1,bn1,_,l2,bn2 = o.predictor
    with torch.no_grad(): q = norm_by_hand(norm_by_hand(torch.cat(z)@l1.weight.T, bn1).relu()@l2.weight.T, bn2).split(n)
    want = ctr(q[0], t[1], temp)+ctr(q[1], t[0], temp)
    assert abs(o.loss(z, t, None).item()-want)<2e-5

def test_heads():
    "No biases, a norm after every layer, the last without scale and shift; two layers or three"
    for n in (2,3):
        o = make(n_layers=n)
        o.build(5)
        for head,sizes in ((o.projector, [5]+[7]*(n-1)+[4]), (o.predictor, [4,7,4])):
            lins,norms = [[m for m in head if isinstance(m, c)] for c in (nn.Linear,nn.BatchNorm1d)]
            assert [m.in_features for m in lins]+[lins[-1].out_features]==sizes and len(norms)==len(lins)
            assert all(m.bias is None for m in lins) and [m.affine for m in norms]==[True]*(len(lins)-1)+[False]

class Linear(nn.Linear):
    nf = 6

def views(n, seed): return list(torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed)))

def test_steps():
    "Weights and teacher as in a loop of its own, with the momentum of each step"
    torch.manual_seed(0)
    enc = Linear(5, 6, bias=False)
    o = make(n_layers=1, momentum=.5, momentum_end=.9).set_up(enc).train()
    q_net,pred = deepcopy(nn.Sequential(enc, o.projector)),deepcopy(o.predictor)
    k_net = deepcopy(q_net)
    opt,by_hand = (torch.optim.SGD([p for m in ms for p in m.parameters() if p.requires_grad], lr=.1) for ms in ((enc,o), (q_net,pred)))
    for i,n in enumerate((4,3,5)):
        v = views(n, i)
        o.pct_train = i/3
        o(enc, v).backward()
        opt.step()
        opt.zero_grad()
        o.after_step(enc)
        q = pred(q_net(torch.cat(v))).split(n)
        with torch.no_grad(): k = k_net(torch.cat(v)).split(n)
        loss = 0.
        for a,b in ((q[0],k[1]), (q[1],k[0])):
            a,b = F.normalize(a, dim=1),F.normalize(b, dim=1)
            loss = loss + 2*.2*F.cross_entropy(a@b.T/.2, torch.arange(n))
        loss.backward()
        by_hand.step()
        by_hand.zero_grad()
        m = .9-(.9-.5)*(math.cos(math.pi*i/3)+1)/2
        with torch.no_grad():
            for p,s in zip(k_net.parameters(), q_net.parameters()): p.copy_(m*p+(1-m)*s)
    assert torch.allclose(ws(nn.Sequential(enc, o.projector)), ws(q_net), atol=1e-5)
    assert torch.allclose(ws(nn.Sequential(o.ema.encoder, o.ema.projector)), ws(k_net), atol=1e-5)

def test_teacher_has_no_predictor():
    o = make().set_up(Linear(5, 6))
    assert sorted(dict(o.ema.named_children()))==['encoder','projector']

def test_eval_changes_nothing():
    enc = Linear(5, 6)
    o = make().set_up(enc).eval()
    was = ws(o).clone()
    assert torch.isfinite(o(enc, views(4, 0)))
    assert torch.equal(ws(o), was)

@pytest.mark.parametrize('kwargs,say', [(dict(temp=0), 'temp must be above 0: got 0'), (dict(momentum=1.1), 'momentum must be from 0 to 1: got 1.1'),
                                        (dict(momentum_end=-1), 'momentum_end must be from 0 to 1: got -1'), (dict(n_layers=0), 'n_layers must be 1 or more: got 0')])
def test_bad_settings(kwargs, say):
    with pytest.raises(ValueError, match=say): MoCoV3(**kwargs)
