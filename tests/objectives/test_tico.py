"TiCo against the paper's equations, in float64 and one embedding at a time"
import pytest
from utils import *
from fastai_contrastive.objectives.tico import *
from fastai_contrastive.encoder import *

def unit(v): return v/v.norm()

def tico_by_hand(C, z, t, rho, beta):
    "The loss, and the matrix that goes with it"
    z,t = [unit(o) for o in z.double()],[unit(o) for o in t.double()]
    n = len(z)
    C = beta*C + (1-beta)*sum(torch.outer(o, o) for o in z)/n
    return sum(-a@b for a,b in zip(z,t))/n + rho/n*sum(a@C@a for a in z), C

@pytest.mark.parametrize('n,rho,beta', [(2,8.,.9), (7,20.,.5), (16,1.,0.)])
def test_loss_and_matrix_over_updates(n, rho, beta):
    o,C = TiCo(rho, beta, dim=5).train(),torch.zeros(5,5).double()
    for i in range(4):
        z,t = torch.randn(n,5)*3,torch.randn(n,5)
        want,C = tico_by_hand(C, z, t, rho, beta)
        assert abs(o.loss([z], [t], None).item()-want.item())<1e-5
        assert torch.allclose(o.C.double(), C, atol=1e-6) and not o.C.requires_grad

def test_matrix_stands_still_at_validation():
    o = TiCo(dim=5).train()
    o.loss([torch.randn(6,5)], [torch.randn(6,5)], None)
    was,(z,t) = o.C.clone(),torch.randn(2,6,5)
    want,_ = tico_by_hand(was.double(), z, t, 8., .9)
    assert abs(o.eval().loss([z], [t], None).item()-want.item())<1e-5
    assert torch.equal(o.C, was)

def test_gradient():
    "Through this batch's part of the matrix, not to the teacher, and not to earlier batches"
    o = TiCo(rho=5., beta=.6, dim=4).train()
    first = torch.randn(6,4, requires_grad=True)
    o.loss([first], [torch.randn(6,4)], None)
    C = o.C.double()
    z,t = torch.randn(6,4, requires_grad=True),torch.randn(6,4, requires_grad=True)
    o.loss([z], [t], None).backward()
    zd = z.detach().double().requires_grad_()
    tico_by_hand(C, zd, t.detach(), 5., .6)[0].backward()
    assert torch.allclose(z.grad.double(), zd.grad, atol=1e-6)
    assert t.grad is None and first.grad is None

def test_first_view_through_the_student_second_through_the_teacher():
    enc = create_encoder(body())
    o = TiCo(dim=4, hidden=8)
    o.set_up(enc).train()
    # A teacher of its own weights, so that the two can be told apart
    with torch.no_grad():
        for p in o.ema.parameters(): p.add_(torch.randn_like(p)*.3)
    a,b = torch.rand(2,6,3,16,16)
    for m in (o, enc): m.train()
    got = o(enc, [a,b]).item()
    z,t = o.projector(enc(a)),o.ema.projector(o.ema.encoder(b))
    assert abs(got-tico_by_hand(torch.zeros(4,4).double(), z, t, 8., .9)[0].item())<1e-4

def test_momentum_by_step():
    enc = create_encoder(body())
    o = TiCo(dim=4, hidden=8, momentum=.8, momentum_end=1.)
    o.set_up(enc)
    p,q = o.projector[0].weight,o.ema.projector[0].weight
    for pct,m in ((0.,.8), (.5,.9), (1.,1.)):
        with torch.no_grad(): p.add_(1)
        want = m*q+(1-m)*p.detach()
        o.pct_train = pct
        o.after_step(enc)
        assert torch.allclose(q, want, atol=1e-6)

def test_collapse_costs_most():
    "All the same pay rho-1; spread over dim orthogonal directions they pay rho/dim-1"
    o,e = TiCo(rho=8., beta=0., dim=8),torch.eye(8)
    assert abs(o.loss([e[:1].expand(8,-1)], [e[:1].expand(8,-1)], None).item()-7)<1e-5
    assert abs(o.loss([e], [e], None).item())<1e-5

def test_bad_settings():
    for kw,msg in ((dict(rho=-1),'rho must be 0 or more: got -1'), (dict(beta=1.),'beta must be'), (dict(beta=-.1),'beta must be'), (dict(dim=0),'dim must be')):
        with pytest.raises(ValueError, match=msg): TiCo(**kw)
