"VICReg against the equations of arXiv 2105.04906 (with the factors of the authors' code), in float64 and one number at a time"
import math, pytest
from utils import *
from fastai_contrastive.losses import *
from fastai_contrastive.objectives.vicreg import *

def covariance(z):
    "Divided by n-1"
    n,d = len(z),len(z[0])
    m = [sum(r[j] for r in z)/n for j in range(d)]
    return [[sum((r[i]-m[i])*(r[j]-m[j]) for r in z)/(n-1) for j in range(d)] for i in range(d)]

def by_hand(z1, z2, inv=25., var=25., cov=1.):
    (n,d),a,b = z1.shape,z1.double().tolist(),z2.double().tolist()
    s = sum((x-y)**2 for p,q in zip(a,b) for x,y in zip(p,q))/(n*d)
    v = c = 0.
    for z in (a,b):
        C = covariance(z)
        v += sum(max(0, 1-math.sqrt(C[j][j]+1e-4)) for j in range(d))/d
        c += sum(C[i][j]**2 for i in range(d) for j in range(d) if i!=j)/d
    return inv*s+var*v/2+cov*c

@pytest.mark.parametrize('n,d', [(2,3), (5,4), (8,7), (33,6)])
@pytest.mark.parametrize('scale', [.1,1.,3.])
@pytest.mark.parametrize('ws', [(25.,25.,1.),(1.,0.,0.),(0.,1.,0.),(0.,0.,1.)])
def test_loss(n, d, scale, ws):
    z1 = torch.randn(n,d)*scale+2
    z2 = z1*.5+torch.randn(n,d)*scale
    want = by_hand(z1, z2, *ws)
    assert abs(vicreg(z1, z2, *ws).item()-want)<1e-5*max(1, want)

def test_small_covariance_is_not_lost():
    "Dimensions of great variance that are nearly uncorrelated"
    z = torch.tensor([[1,1],[1,-1],[-1,1],[-1,-1]])*100.+torch.tensor([[.01,0],[0,0],[0,0],[0,0]])
    want = by_hand(z, z, 0., 0., 1.)
    assert want>1e-2 and abs(vicreg(z, z, 0., 0., 1.)-want)<.01*want

def ready(n=7, **kwargs):
    torch.manual_seed(0)
    enc = create_encoder(plain_body())
    return VICReg(**{**dict(dim=6, hidden=9), **kwargs}).set_up(enc).train(),enc,two_views(images(n)[0])

def test_objective():
    obj,enc,views = ready(inv=3., var=5., cov=7.)
    z = obj.projector(enc(torch.cat(views)))
    assert abs(obj(enc, views).item()-by_hand(z[:7], z[7:], 3., 5., 7.))<1e-5

def test_both_sides_get_gradient():
    obj,*_ = ready()
    z = [torch.randn(5,6, requires_grad=True) for _ in range(2)]
    obj.loss(z, None, None).backward()
    assert all(o.grad.abs().sum()>0 for o in z)

def test_three_views_are_the_mean_of_the_pairs():
    obj,*_ = ready()
    z = [torch.randn(5,6) for _ in range(3)]
    close(obj.loss(z, None, None), sum(by_hand(z[i], z[j]) for i,j in ((0,1),(0,2),(1,2)))/3, eps=1e-4)

def test_heads():
    "Three layers, no bias that the loss would not see, no norm at the end"
    obj,*_ = ready()
    assert [type(o).__name__ for o in obj.projector]==['Linear','HeadNorm','ReLU']*2+['Linear']
    assert [(o.out_features,o.bias) for o in obj.projector if isinstance(o, nn.Linear)]==[(9,None),(9,None),(6,None)]
    assert ready(hidden=None)[0].projector[0].out_features==6

def test_views_are_of_two_kinds():
    a,b = (VICReg().views(32).draw(2000, 32, 32, i) for i in range(2))
    assert (a.sigma>0).all() and not a.solarize.any() and abs((b.sigma>0).float().mean()-.1)<.03 and abs(b.solarize.float().mean()-.2)<.04

@pytest.mark.parametrize('k,v,want', [('dim',0,'1 or more'), ('hidden',0,'1 or more'), ('inv',-1.,'0 or more'), ('var',-1.,'0 or more'), ('cov',float('nan'),'a finite number')])
def test_bad_settings(k, v, want):
    with pytest.raises(ValueError, match=f'{k} must be {want}: got {v}'): VICReg(**{k:v})

def test_bad_batches():
    with pytest.raises(ValueError, match='at least two'): vicreg(torch.randn(1,4), torch.randn(1,4))
    with pytest.raises(ValueError, match='one shape'): vicreg(torch.randn(4,4), torch.randn(4,5))
