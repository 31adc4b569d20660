"Alignment and uniformity against the paper's equations, pair by pair"
import math, pytest, torch
from utils import *
from fastai_contrastive.objectives.alignuniform import *

def unit(z): return [o/o.norm() for o in z.double()]

def align_by_hand(x, y, alpha): return sum(float((a-b).norm())**alpha for a,b in zip(unit(x), unit(y)))/len(x)

def uniform_by_hand(x, t):
    "Pairs of two different images, each once"
    x = unit(x)
    k = [math.exp(-t*float((x[i]-x[j]).norm())**2) for i in range(len(x)) for j in range(i)]
    return math.log(sum(k)/len(k))

@pytest.mark.parametrize('n', [2,5,16])
@pytest.mark.parametrize('alpha,t', [(2.,2.), (1.,3.), (3.,.5)])
def test_losses(n, alpha, t):
    x,y = torch.randn(n,7),torch.randn(n,7)*5
    assert abs(align_loss(x, y, alpha).item()-align_by_hand(x, y, alpha))<1e-5*2**alpha
    assert abs(uniform_loss(y, t).item()-uniform_by_hand(y, t))<1e-5*max(1, t)

def test_objective_is_the_weighted_sum_with_uniformity_per_view():
    x,y = torch.randn(6,7),torch.randn(6,7)+1
    want = .5*align_by_hand(x, y, 1.5) + 3*(uniform_by_hand(x, 4.)+uniform_by_hand(y, 4.))/2
    got = AlignUniform(align=.5, uniform=3., alpha=1.5, t=4.).loss([x,y], None, None).item()
    assert abs(got-want)<1e-4

def test_against_pdist():
    "The published code's way, with its gradient"
    x = torch.randn(9,5)
    a,b = x.clone().requires_grad_(),x.clone().requires_grad_()
    uniform_loss(a).backward()
    torch.pdist(F.normalize(b, dim=1)).pow(2).mul(-2).exp().mean().log().backward()
    close(a.grad, b.grad, eps=1e-5)

@pytest.mark.parametrize('alpha', [1.,2.])
def test_views_that_agree_are_finite(alpha):
    "The distance has no slope at zero"
    z = torch.ones(4,5, requires_grad=True)
    (align_loss(z, z.detach().clone(), alpha)+uniform_loss(z)).backward()
    assert torch.isfinite(z.grad).all()
    assert align_loss(z, z)==0 and abs(uniform_loss(z).item())<1e-6

def test_far_apart_is_finite():
    "exp(-t·4) of every pair is zero in float32"
    z = tensor([[1.,0.],[-1.,0.]]).requires_grad_()
    c = uniform_loss(z, t=100.)
    c.backward()
    close(c, torch.tensor(-400.), eps=1e-2)
    assert torch.isfinite(z.grad).all()

def test_errors():
    with pytest.raises(ValueError, match='alpha must be 1 or more.*got 0.5'): AlignUniform(alpha=.5)
    with pytest.raises(ValueError, match='t must be above 0: got 0'): AlignUniform(t=0)
    with pytest.raises(ValueError, match='align and uniform.*got -1 and 1'): AlignUniform(align=-1)
    with pytest.raises(ValueError, match='align and uniform.*got 0 and 0'): AlignUniform(align=0, uniform=0)
    with pytest.raises(ValueError, match='align_loss needs two .* of one shape'): align_loss(torch.randn(3,4), torch.randn(4,4))
    with pytest.raises(ValueError, match='uniform_loss needs .* at least two images: got .1, 4.'): uniform_loss(torch.randn(1,4))
