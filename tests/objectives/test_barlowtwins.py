"Barlow Twins against equations 1 and 2 of arXiv 2103.03230, in float64 and one pair of dimensions at a time"
import math, pytest
from utils import *
from fastai_contrastive.losses import *
from fastai_contrastive.objectives.barlowtwins import *

def by_hand(z1, z2, lambd, eps=1e-5):
    "Sums over the batch; `eps` is what batch norm adds to a variance"
    (n,d),a,b = z1.shape,z1.double().tolist(),z2.double().tolist()
    ma,mb = ([sum(r[j] for r in z)/n for j in range(d)] for z in (a,b))
    sa,sb = ([math.sqrt(sum((r[j]-m[j])**2 for r in z)+n*eps) for j in range(d)] for z,m in ((a,ma),(b,mb)))
    total = 0.
    for i in range(d):
        for j in range(d):
            c = sum((a[k][i]-ma[i])*(b[k][j]-mb[j]) for k in range(n))/(sa[i]*sb[j])
            total += (1-c)**2 if i==j else lambd*c**2
    return total

@pytest.mark.parametrize('n,d,lambd', [(2,3,.0051), (5,4,.5), (8,7,0.), (33,6,.0051)])
@pytest.mark.parametrize('scale', [.1,1.,30.])
def test_loss(n, d, lambd, scale):
    z1 = torch.randn(n,d)*scale+2
    z2 = z1*.5+torch.randn(n,d)*scale
    want = by_hand(z1, z2, lambd)
    assert abs(barlow(z1, z2, lambd).item()-want)<1e-5*max(1, want)

def test_small_redundancy_is_not_lost():
    "Wide, and nearly decorrelated: what is off the diagonal is tiny beside what is on it"
    torch.manual_seed(0)
    z = torch.linalg.qr(torch.cat([torch.ones(600,1),torch.randn(600,400)], 1).double()).Q[:,1:]*600**.5
    z = z+1e-5*torch.randn_like(z)
    c = z.T@z/600
    want = 1000*((c-c.diagonal().diag())**2).sum()
    assert abs(barlow(z.float(), z.float(), 1000., eps=0.)-want)<.02*want

def ready(**kwargs):
    torch.manual_seed(0)
    enc = create_encoder(plain_body())
    return BarlowTwins(**{**dict(dim=6, hidden=9), **kwargs}).set_up(enc).train(),enc,two_views(images(7)[0])

def test_objective():
    obj,enc,views = ready(lambd=.3, scale=.7)
    z = obj.projector(enc(torch.cat(views)))
    assert abs(obj(enc, views).item()-.7*by_hand(z[:7], z[7:], .3))<1e-5

def test_both_sides_get_gradient():
    obj,*_ = ready()
    z = [torch.randn(5,6, requires_grad=True) for _ in range(2)]
    obj.loss(z, None, None).backward()
    assert all(o.grad.abs().sum()>0 for o in z)

def test_three_views_are_the_mean_of_the_pairs():
    obj,*_ = ready(scale=1.)
    z = [torch.randn(5,6) for _ in range(3)]
    close(obj.loss(z, None, None), sum(by_hand(z[i], z[j], .0051) for i,j in ((0,1),(0,2),(1,2)))/3, eps=1e-4)

def test_heads():
    "Three layers, and no bias that the loss would not see"
    obj,*_ = ready()
    assert [type(o).__name__ for o in obj.projector]==['Linear','HeadNorm','ReLU']*2+['Linear']
    assert [(o.out_features,o.bias) for o in obj.projector if isinstance(o, nn.Linear)]==[(9,None),(9,None),(6,None)]
    assert ready(hidden=None)[0].projector[0].out_features==6

def test_views_are_of_two_kinds():
    a,b = (BarlowTwins().views(32).draw(2000, 32, 32, i) for i in range(2))
    assert (a.sigma>0).all() and not a.solarize.any() and abs((b.sigma>0).float().mean()-.1)<.03 and abs(b.solarize.float().mean()-.2)<.04

@pytest.mark.parametrize('k,v,want', [('dim',0,'1 or more'), ('hidden',0,'1 or more'), ('lambd',-.1,'0 or more'), ('lambd',float('nan'),'a finite number'), ('scale',0.,'above 0')])
def test_bad_settings(k, v, want):
    with pytest.raises(ValueError, match=f'{k} must be {want}: got {v}'): BarlowTwins(**{k:v})

def test_bad_batches():
    with pytest.raises(ValueError, match='at least two'): barlow(torch.randn(1,4), torch.randn(1,4))
    with pytest.raises(ValueError, match='one shape'): barlow(torch.randn(4,4), torch.randn(4,5))
