"DCL and DCLW against the paper's equations, written out pair by pair"
import math, pytest, torch
from utils import *
from fastai_contrastive.losses import nt_xent
from fastai_contrastive.objectives.dcl import *

def by_hand(z1, z2, temp, sigma=None):
    "Equations 6 and 7 of arXiv 2110.06848: both directions, view 1 and 2 of every other image below the line"
    views = [[o/o.norm() for o in z.double()] for z in (z1,z2)]
    n,total = len(z1),0.
    mean = sum(math.exp(float(views[0][k]@views[1][k])/sigma) for k in range(n))/n if sigma else None
    for k in (0,1):
        for i in range(n):
            pos = float(views[k][i]@views[1-k][i])
            w = 2-math.exp(pos/sigma)/mean if sigma else 1.
            u = sum(math.exp(float(views[k][i]@views[l][j])/temp) for l in (0,1) for j in range(n) if j!=i)
            total += -w*pos/temp + math.log(u)
    return total/(2*n)

@pytest.mark.parametrize('n,temp', [(2,.5), (5,.1), (7,1.), (16,.2)])
@pytest.mark.parametrize('sigma', [None,.5,.2])
def test_dcl(n, temp, sigma):
    z1,z2 = torch.randn(n,11),torch.randn(n,11)*3
    z2 = z2+2*z1 # Pairs that are alike, each in its own degree
    want = by_hand(z1, z2, temp, sigma)
    assert abs(dcl(z1,z2,temp,sigma).item()-want)<1e-5*max(1, abs(want))

def test_it_is_nt_xent_less_the_partner():
    "log(e^pos + U) - log U, the partner's share of SimCLR's denominator, image by image"
    z1,z2 = torch.randn(6,5),torch.randn(6,5)
    z = F.normalize(torch.cat([z1,z2]), dim=1).double()
    s = z@z.T/.3
    share = 0.
    for i in range(12):
        u = sum(s[i,j].exp() for j in range(12) if j not in (i,(i+6)%12))
        share += ((s[i,(i+6)%12].exp()+u)/u).log()
    close(nt_xent(z1, z2, .3)-dcl(z1, z2, .3), (share/12).float(), eps=1e-5)

def test_low_temperature_leaves_the_partner_out():
    "Nothing of the partner, or of the image itself, is left where logits go to 1000"
    z = torch.eye(4)
    close(dcl(z, z, temp=1e-3), torch.tensor(math.log(6)-1000), eps=1e-3)

def test_no_gradient_through_the_weights():
    z1,z2 = torch.randn(5,4),torch.randn(5,4)
    w = 2-5*(F.cosine_similarity(z1, z2)/.5).softmax(0)
    a,b = z1.clone().requires_grad_(),z1.clone().requires_grad_()
    dcl(a, z2, .2, .5).backward()
    # The weights as constants on the partners, beside the rest of the loss without weights
    (dcl(b, z2, .2) + ((1-w)*F.cosine_similarity(b, z2)).mean()/.2).backward()
    close(a.grad, b.grad, eps=1e-5)

def test_objectives_use_their_settings():
    z = [torch.randn(6,8) for _ in range(2)]
    z[1] = z[1]+z[0]
    assert DCL(temp=.3).loss(z, None, None)==dcl(*z, temp=.3)
    assert DCLW(temp=.3, sigma=.7).loss(z, None, None)==dcl(*z, temp=.3, sigma=.7)!=dcl(*z, temp=.3)
    assert issubclass(DCLW, DCL) and DCL(hidden=5).sigma is None
    o = built(DCLW(dim=3, hidden=7))
    assert o.project(torch.randn(4,12)).shape==(4,3) and o.projector[0].out_features==7

def test_errors():
    for cls in (DCL,DCLW):
        with pytest.raises(ValueError, match='temp must be above 0: got 0'): cls(temp=0)
    with pytest.raises(ValueError, match='sigma must be above 0: got -1'): DCLW(sigma=-1)
    with pytest.raises(ValueError, match='dcl needs at least two images'): dcl(torch.randn(1,4), torch.randn(1,4))
    with pytest.raises(ValueError, match='dcl needs two .* of one shape'): dcl(torch.randn(3,4), torch.randn(4,4))
