"W-MSE against the paper's steps, in float64 and one sub-batch at a time"
import pytest
from utils import *
from fastai_contrastive.objectives.wmse import *

def whiten_by_hand(z, eps=0.):
    z = z.double()
    n,d = z.shape
    mu = sum(z)/n
    cov = sum(torch.outer(v-mu, v-mu) for v in z)/(n-1)
    cov = (1-eps)*cov + eps*max(1., cov.trace().item()/d)*torch.eye(d).double()
    W = torch.linalg.inv(torch.linalg.cholesky(cov))
    return torch.stack([W@(v-mu) for v in z])

def w_mse_by_hand(zs, idxs, eps):
    "Every pair of views, every sub-batch, every image: squared distance of the unit vectors"
    total,n = 0.,0
    for i in idxs:
        w = [whiten_by_hand(z[i], eps) for z in zs]
        for a in range(len(zs)):
            for b in range(a+1, len(zs)):
                for p,q in zip(w[a], w[b]):
                    total += (p/p.norm()-q/q.norm()).pow(2).sum().item()
                    n += 1
    return total/n

def mixed(n, dim, scale=1.): return scale*torch.randn(n, dim)@(torch.randn(dim, dim)+2*torch.eye(dim))+3

@pytest.mark.parametrize('n,dim', [(9,3), (40,6), (33,11)])
@pytest.mark.parametrize('eps,scale', [(1e-9,1.), (.1,1.), (.1,.1)])
def test_whiten(n, dim, eps, scale):
    z = mixed(n, dim, scale)
    w = whiten(z, eps)
    assert torch.allclose(w.double(), whiten_by_hand(z, eps), atol=1e-4)
    if eps<1e-3: assert torch.allclose(torch.cov(w.T), torch.eye(dim), atol=1e-4) and w.mean(0).abs().max()<1e-5

def test_whitening_is_per_view():
    "A view that is another, scaled and moved, agrees with it wholly; whitening both together would not see that"
    o = WMSE(dim=4, eps=1e-6)
    z = mixed(20, 4)
    assert o.loss([z,z*5-7], None, None)<1e-4
    assert o.loss([z,mixed(20, 4)], None, None)>.5

@pytest.mark.parametrize('n,views,w_size,w_iter', [(17,2,None,1), (16,2,8,1), (16,2,8,3), (21,3,6,2), (13,4,7,1)])
def test_loss(n, views, w_size, w_iter):
    o = WMSE(dim=4, w_size=w_size, w_iter=w_iter, eps=.01).train()
    zs = [mixed(n, 4)+i for i in range(views)]
    o.step += 5
    idxs = o.slices(n)
    flat = [torch.arange(n)] if w_size is None else idxs
    assert sorted(torch.cat(flat).tolist())==sorted(list(range(n))*w_iter), 'every image once a round'
    assert all(len(i)>=(w_size or n) for i in flat)
    assert abs(o.loss(zs, None, None).item()-w_mse_by_hand(zs, flat, .01))<1e-5

def test_slices_change_with_training_steps_only():
    o = WMSE(dim=2, w_size=4)
    zs = [mixed(12, 2) for _ in range(2)]
    was = torch.cat(o.slices(12))
    o.eval().loss(zs, None, None)
    assert o.step==0 and torch.equal(torch.cat(o.slices(12)), was)
    o.train().loss(zs, None, None)
    assert o.step==1 and not torch.equal(torch.cat(o.slices(12)), was)
    torch.manual_seed(9)
    p = WMSE(dim=2, w_size=4)
    p.load_state_dict(o.state_dict())
    assert torch.equal(torch.cat(p.slices(12)), torch.cat(o.slices(12))), 'other processes, and a resume, draw the same'

def test_gradient_goes_through_the_whitening():
    "Also through the covariance: the loss knows nothing of scale and shift, so the gradient has neither; and it is the gradient of the paper's steps"
    o = WMSE(dim=3, eps=1e-6)
    a,b = (mixed(15, 3).requires_grad_() for _ in range(2))
    o.loss([a,b], None, None).backward()
    assert a.grad.abs().sum()>1e-3
    assert a.grad.sum(0).abs().max()<1e-5 and (a.grad*(a-a.mean(0))).sum().abs()<1e-4
    x,y = (v.detach().double().requires_grad_() for v in (a,b))
    (2-2*F.cosine_similarity(whiten_by_hand(x, 1e-6), whiten_by_hand(y, 1e-6)).mean()).backward()
    assert torch.allclose(a.grad.double(), x.grad, atol=1e-4) and torch.allclose(b.grad.double(), y.grad, atol=1e-4)

@pytest.mark.parametrize('z', [torch.zeros(9,4), torch.ones(9,4)*1e4, torch.randn(9,1).expand(-1,4)*1e-4, torch.randn(9,1).expand(-1,4)*1e6])
def test_degenerate(z):
    z = z.clone().requires_grad_()
    c = WMSE(dim=4).loss([z,z.flip(0)], None, None)
    c.backward()
    assert torch.isfinite(c) and torch.isfinite(z.grad).all()

def test_bad_input():
    for kw,msg in ((dict(dim=0),'dim must be'), (dict(w_iter=0),'w_iter must be'), (dict(eps=0.),'eps must be'), (dict(dim=8, w_size=8),'w_size must be above dim: got 8 with dim 8')):
        with pytest.raises(ValueError, match=msg): WMSE(**kw)
    with pytest.raises(ValueError, match='6 rows of 6; raise bs or lower dim'): WMSE(dim=6).loss([torch.randn(6,6)]*2, None, None)
    assert WMSE(dim=6).min_bs==7 and WMSE(dim=6, w_size=12).min_bs==12
