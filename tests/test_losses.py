"The losses against their papers' equations, written out one term at a time."
import math, pytest, torch
from fastai_contrastive.losses import *

def nt_xent_by_hand(z1, z2, temp):
    "Equation 1 of arXiv 2002.05709, pair by pair"
    z = [*z1.double(), *z2.double()]
    n = len(z1)
    sim = lambda a,b: (a@b/(a.norm()*b.norm())).item()/temp
    total = 0.
    for i in range(2*n):
        j = (i+n)%(2*n)
        total += -math.log(math.exp(sim(z[i],z[j]))/sum(math.exp(sim(z[i],z[k])) for k in range(2*n) if k!=i))
    return total/(2*n)

@pytest.mark.parametrize('n,temp', [(2,.5), (5,.1), (7,1.), (16,.2)])
def test_nt_xent(n, temp):
    z1,z2 = torch.randn(n,11),torch.randn(n,11)*3
    assert abs(nt_xent(z1,z2,temp).item()-nt_xent_by_hand(z1,z2,temp))<1e-5

@pytest.mark.parametrize('scale', [1e-6, 1e6])
def test_nt_xent_finite(scale):
    z = (torch.randn(6,8)*scale).requires_grad_()
    nt_xent(z, z.roll(1,0)).backward()
    assert torch.isfinite(z.grad).all()

def test_nt_xent_bad_input():
    with pytest.raises(ValueError, match='at least two'): nt_xent(torch.randn(1,4), torch.randn(1,4))
    with pytest.raises(ValueError, match='one shape'): nt_xent(torch.randn(4,4), torch.randn(5,4))
