"AMDIM against the equations of arXiv 1906.00910, one pair of places at a time"
import math, pytest
from utils import *
from fastai_contrastive.objectives.amdim import *

def by_hand(q, k, own, clip, reg):
    "Clipped scores; each place of an image against all places of all other images; the mean squared score"
    q,k,own = q.detach().double(),k.detach().double(),own.tolist()
    n,a,d = q.shape
    raw = lambda i,x,j,y: (q[i,x]@k[j,y]).item()/math.sqrt(d)
    s = lambda *at: clip*math.tanh(raw(*at)/clip)
    m,b = k.shape[:2]
    nce,sq = 0.,0.
    for i in range(n):
        for x in range(a):
            neg = sum(math.exp(s(i,x,j,y)) for j in range(m) if j!=own[i] for y in range(b))
            for y in range(b): nce -= math.log(math.exp(s(i,x,own[i],y))/(math.exp(s(i,x,own[i],y))+neg))
            sq += sum(raw(i,x,j,y)**2 for j in range(m) for y in range(b))
    return nce/(n*a*b) + reg*sq/(n*a*m*b)

@pytest.mark.parametrize('n,a,b,m,clip,reg', [(2,1,1,2,10.,.04), (5,1,9,5,10.,.04), (3,4,2,7,2.,.5), (5,3,3,5,10.,0.)])
def test_infomax_nce(n, a, b, m, clip, reg):
    torch.manual_seed(n)
    q,k = torch.randn(n,a,6)*2,torch.randn(m,b,6)*2
    own = torch.arange(n)+(m-n)
    assert abs(infomax_nce(q, k, own, clip, reg).item()-by_hand(q, k, own, clip, reg))<1e-5
    if m==n: assert infomax_nce(q, k, clip=clip, reg=reg)==infomax_nce(q, k, own, clip, reg)

def test_gradients_are_those_of_the_kept_scores():
    a,b = [[o.clone().requires_grad_() for o in (torch.eye(3,4)[:,None], torch.ones(3,2,4)+torch.eye(3,4)[:,None])] for _ in range(2)]
    infomax_nce(*a).backward()
    s = torch.einsum('nad,mbd->namb', *b)/2
    c,me = 10*torch.tanh(s/10),torch.eye(3).bool()
    neg = c.exp()[:,0].masked_fill(me[...,None], 0.).sum((1,2))
    (-(c[:,0][me]-(c[:,0][me].exp()+neg[:,None]).log()).mean() + .04*s.pow(2).mean()).backward()
    for p,q in zip(a, b): assert torch.allclose(p.grad, q.grad, atol=1e-6) and p.grad.abs().sum()>0

def test_huge_scores():
    q,k = (torch.randn(4,2,8)*1e5).requires_grad_(),torch.randn(4,2,8)*1e5
    c = infomax_nce(q, k)
    c.backward()
    assert torch.isfinite(c) and torch.isfinite(q.grad).all()

class Once(Module):
    "An encoder that counts its passes: two convolutions, pooled by their maxima"
    nf = 6
    def __init__(self): self.c,self.n = nn.Conv2d(3, 6, 4, stride=4),0
    def both(self, x):
        self.n += 1
        m = self.c(x)
        return m.amax((2,3)),m

def ready(**kwargs):
    torch.manual_seed(0)
    obj,enc = AMDIM(dim=5, hidden=7, **kwargs),Once()
    obj.build(6)
    return obj.eval(),enc # batch norm of each place by itself

def places(obj, f, m, side):
    "Embeddings of the whole, of `side` × `side` places, and of half as many along each side, pooled by slicing"
    def _pool(n):
        w = m.shape[-1]//n
        return torch.stack([m[:,:,i*w:(i+1)*w,j*w:(j+1)*w].mean((2,3)) for i in range(n) for j in range(n)], 1)
    whole,fine,coarse = obj.projector(f)[:,None],_pool(side),_pool(side//2)
    return whole,torch.stack([obj.fine(o) for o in fine]),torch.stack([obj.coarse(o) for o in coarse]) if obj.across else None

def test_across_views():
    "Whole → fine, whole → coarse, coarse → coarse, each way; one pass for all views"
    obj,enc = ready(side=4)
    views = [torch.randn(5,3,32,32)*5 for _ in range(2)]
    c = obj(enc, views)
    assert enc.n==1
    p = [places(obj, *enc.both(v), 4) for v in views]
    own = torch.arange(5)
    want = [by_hand(p[i][a], p[1-i][b], own, 10., .04) for i in range(2) for a,b in ((0,1),(0,2),(2,2))]
    assert p[0][1].shape==(5,16,5) and p[0][2].shape==(5,4,5)
    within = [by_hand(p[i][a], p[i][b], own, 10., .04) for i in range(2) for a,b in ((0,1),(0,2),(2,2))]
    assert abs(c.item()-np.mean(want))<1e-5 and abs(np.mean(within)-np.mean(want))>1e-3

def test_deep_infomax():
    "One view: its whole with its own places, against those of other images"
    obj,enc = ready(across=False, side=4)
    x = images(5, 32)[0]
    whole,fine,_ = places(obj, *enc.both(x), 4)
    want = by_hand(whole, fine, torch.arange(5), 10., .04)
    assert abs(obj(enc, [x]).item()-want)<1e-5
    with pytest.raises(ValueError, match='no use for more than 1 views: got 2'): obj(enc, [x,x])
    assert len(obj.views()(x))==1 and not hasattr(obj, 'coarse')
    with pytest.raises(ValueError, match='at least 2 views'): ready()[0](enc, [x])

@pytest.mark.parametrize('size,side,fine,coarse', [(32,7,49,16), (32,3,9,4), (4,7,1,1), (12,7,9,4)])
def test_how_many_places(size, side, fine, coarse):
    obj,enc = ready(side=side)
    e = obj.places(*enc.both(torch.rand(2,3,size,size)))
    assert {k:v.shape[1] for k,v in e.items()}==dict(projector=1, fine=fine, coarse=coarse)

def test_bad_input():
    for kw,msg in ((dict(clip=0.),'clip must'), (dict(reg=-1.),'reg 0 or more'), (dict(side=0),'side must'), (dict(dim=0),'dim must')):
        with pytest.raises(ValueError, match=msg): AMDIM(**kw)
    with pytest.raises(ValueError, match='two images'): infomax_nce(torch.rand(1,2,3), torch.rand(1,2,3))
    with pytest.raises(ValueError, match='places, dim'): infomax_nce(torch.rand(2,3), torch.rand(2,3))
    flat = create_encoder(nn.Sequential(plain_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ValueError, match='amdim needs maps'): AMDIM().set_up(flat)
    with pytest.raises(ValueError, match='a map of one place is compared with itself'): ready(across=False)[0](ready()[1], [torch.rand(2,3,4,4)])
