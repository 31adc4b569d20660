"SimSiam against the pseudo-code of arXiv 2011.10566, in float64 and one image at a time"
import math, pytest
from utils import *
from fastai_contrastive.losses import *
from fastai_contrastive.objectives.simsiam import *

def ready(n=7, **kwargs):
    torch.manual_seed(0)
    enc = create_encoder(plain_body())
    return SimSiam(**{**dict(dim=6, hidden=9, pred_hidden=4), **kwargs}).set_up(enc).train(),enc,two_views(images(n)[0])

def normed(x):
    cols = []
    for c in x.T:
        m = sum(c)/len(c)
        cols.append((c-m)/(sum((c-m)**2)/len(c)+1e-5).sqrt())
    return torch.stack(cols, 1)

def by_hand(obj, enc, views, stop=True):
    "The pseudo-code's two terms, with every layer written out; the weights' own graph"
    l = lambda m,x: x@m.weight.double().T
    act = lambda bn,x: (normed(x)*bn.weight.double()+bn.bias.double()).clamp(min=0)
    a,bn1,_,b,bn2,_,c,_ = obj.projector
    d,bn3,_,e = obj.predictor
    n,f = len(views[0]),enc(torch.cat(views)).double()
    z = normed(l(c, act(bn2, l(b, act(bn1, l(a, f))))))
    p = l(e, act(bn3, l(d, z)))+e.bias.double()
    if stop: z = z.detach()
    total = 0.
    for i in range(n):
        for u,v in ((i,n+i),(n+i,i)): total = total - (p[u]@z[v])/(p[u].norm()*z[v].norm())/2
    return total/n

@pytest.mark.parametrize('n', [2,5,8])
def test_loss(n):
    obj,enc,views = ready(n)
    assert abs(obj(enc, views).item()-by_hand(obj, enc, views).item())<1e-5

def test_gradient_is_stopped():
    obj,enc,views = ready()
    ps = [*enc.parameters(),*obj.parameters()]
    got = torch.autograd.grad(obj(enc, views), ps)
    want = torch.autograd.grad(by_hand(obj, enc, views), ps)
    free = torch.autograd.grad(by_hand(obj, enc, views, stop=False), ps)
    assert all(torch.allclose(a, b, atol=1e-5) for a,b in zip(got, want))
    assert not all(torch.allclose(a, b, atol=1e-5) for a,b in zip(want, free))

@pytest.mark.parametrize('n', [1,2,5])
def test_neg_cosine(n):
    p,z = torch.randn(n,7),torch.randn(n,7, requires_grad=True)
    want = -sum(sum(a*b)/math.sqrt(sum(a*a)*sum(b*b)) for a,b in zip(p.double(), z.detach().double()))/n
    assert abs(neg_cosine(p, z).item()-want.item())<1e-5
    assert not neg_cosine(p, z).requires_grad

def test_three_views_are_the_mean_of_the_pairs():
    obj,*_ = ready()
    z = [torch.randn(5,6) for _ in range(3)]
    p = [F.normalize(o, dim=1) for o in obj.predictor(torch.cat(z)).chunk(3)]
    close(obj.loss(z, None, None), -sum((p[i]*F.normalize(z[j], dim=1)).sum(1).mean() for i in range(3) for j in range(3) if i!=j)/6, eps=1e-5)

def test_heads():
    "Three layers that end in a norm without weights; a bottleneck that ends in none"
    obj,*_ = ready()
    kinds = lambda m: [type(o).__name__ for o in m]
    assert kinds(obj.projector)==['Linear','HeadNorm','ReLU']*2+['Linear','HeadNorm'] and not obj.projector[-1].affine
    assert kinds(obj.predictor)==['Linear','HeadNorm','ReLU','Linear'] and obj.predictor[0].out_features==4
    assert [o.bias is None for o in (*obj.projector,*obj.predictor) if isinstance(o, nn.Linear)]==[True]*4+[False]
    assert (SimSiam().dim,SimSiam().hidden,SimSiam().pred_hidden)==(2048,2048,512)

@pytest.mark.parametrize('k', ['dim','hidden','pred_hidden'])
def test_bad_settings(k):
    with pytest.raises(ValueError, match=f'{k} must be .*got 0'): SimSiam(**{k:0})
