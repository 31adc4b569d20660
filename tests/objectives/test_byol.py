"BYOL against the equations of arXiv 2006.07733, in float64 and one image at a time"
import math, pytest
from utils import *
from fastai_contrastive.objectives.byol import *

def ready(n=7, **kwargs):
    torch.manual_seed(0)
    enc = create_encoder(plain_body())
    obj = BYOL(**{**dict(dim=5, hidden=9, pred_hidden=8, momentum=.8), **kwargs}).set_up(enc)
    for m in (obj.ema,): # A teacher that differs from the student
        for p in m.parameters(): p.data += .1*torch.randn_like(p)
    x = images(n)[0]
    return obj.train(),enc,two_views(x)

def normed(x, w, b):
    "Batch norm in training, column by column"
    out = torch.zeros_like(x)
    for j in range(x.shape[1]):
        m = sum(x[:,j])/len(x)
        v = sum((x[:,j]-m)**2)/len(x)
        out[:,j] = (x[:,j]-m)/math.sqrt(v+1e-5)*w[j]+b[j]
    return out

def head(m, x):
    "Linear, batch norm, ReLU, linear"
    a,bn,_,c = (deepcopy(o).double() for o in m)
    h = normed(x@a.weight.T, bn.weight, bn.bias).clamp(min=0)@c.weight.T
    return h if c.bias is None else h+c.bias

@torch.no_grad()
def by_hand(obj, enc, views):
    n,x = len(views[0]),torch.cat(views)
    p = head(obj.predictor, head(obj.projector, enc(x).double()))
    t = head(obj.ema.projector, obj.ema.encoder(x).double())
    total = 0.
    for i in range(n):
        for a,b in ((i,n+i),(n+i,i)): total += ((p[a]/p[a].norm()-t[b]/t[b].norm())**2).sum().item()
    return total/n

@pytest.mark.parametrize('n', [2,5,8])
def test_loss(n):
    obj,enc,views = ready(n)
    assert abs(obj(enc, views).item()-by_hand(obj, enc, views))<1e-5

def test_three_views_are_the_mean_of_the_pairs():
    obj,enc,_ = ready()
    z,t = [torch.randn(6,5) for _ in range(3)],[torch.randn(6,5) for _ in range(3)]
    p = [F.normalize(o, dim=1) for o in obj.predictor(torch.cat(z)).chunk(3)]
    want = sum(((p[i]-F.normalize(t[j], dim=1))**2).sum(1).mean() for i in range(3) for j in range(3) if i!=j)/3
    close(obj.loss(z, t, None), want, eps=1e-5)

def test_gradient_is_the_student_s_alone():
    obj,enc,views = ready()
    obj(enc, views).backward()
    assert all(p.grad is None for p in obj.ema.parameters())
    assert all(p.grad.abs().sum()>0 for m in (enc,obj.projector,obj.predictor) for p in m.parameters())
    assert not hasattr(obj.ema, 'predictor')

def test_targets_are_stopped():
    "Even if someone hands over targets that have a graph"
    obj,*_ = ready()
    z,t = [torch.randn(4,5) for _ in range(2)],[torch.randn(4,5, requires_grad=True) for _ in range(2)]
    obj.loss(z, t, None).backward()
    assert all(o.grad is None for o in t)

@pytest.mark.parametrize('end', [1.,.9])
def test_teacher_follows_by_step(end):
    obj,enc,_ = ready(momentum_end=end)
    K,names = 5,('encoder','projector')
    want = {k:[p.double().clone() for p in getattr(obj.ema,k).parameters()] for k in names}
    for k in range(K):
        with torch.no_grad():
            for m in (enc,obj.projector):
                for p in m.parameters(): p += .1*torch.randn_like(p)
        obj.pct_train = k/K
        obj.after_step(enc)
        tau = end-(end-.8)*(math.cos(math.pi*k/K)+1)/2
        for name,m in zip(names, (enc,obj.projector)): want[name] = [tau*t+(1-tau)*p.detach().double() for t,p in zip(want[name], m.parameters())]
    for name in names:
        for a,b in zip(getattr(obj.ema,name).parameters(), want[name]): assert torch.allclose(a.double(), b, atol=1e-6)

def test_momentum_in_a_fit():
    "By step: four steps of two epochs, and the learner tells where it is"
    learn,seen = contrastive_learner(make_dls(n=16, size=32), plain_body(), BYOL(dim=5, hidden=9, pred_hidden=8)),[]
    obj = learn._grab_cbs(ContrastiveCallback)[0].objective
    after = obj.after_step
    obj.after_step = lambda enc: (seen.append(obj.pct_train), after(enc))
    fit(learn, 2)
    assert np.allclose(seen, [0,.25,.5,.75])

def test_heads():
    "Two layers each; no bias in the projector that the loss would not see"
    obj,*_ = ready()
    assert all([type(o).__name__ for o in m]==['Linear','HeadNorm','ReLU','Linear'] for m in (obj.projector,obj.predictor))
    assert [o.bias is None for m in (obj.projector,obj.predictor) for o in m if isinstance(o, nn.Linear)]==[True,True,True,False]
    assert (BYOL().dim,BYOL().hidden,BYOL().pred_hidden,BYOL().momentum,BYOL().momentum_end)==(256,4096,4096,.996,1.)

def test_views_are_of_two_kinds():
    v = BYOL().views(32)
    a,b = (v.draw(2000, 32, 32, i) for i in range(2))
    assert (a.sigma>0).all() and not a.solarize.any()
    assert abs((b.sigma>0).float().mean()-.1)<.03 and abs(b.solarize.float().mean()-.2)<.04

@pytest.mark.parametrize('k,v', [('momentum',1.1), ('momentum',-.1), ('momentum_end',2.), ('dim',0), ('hidden',0), ('pred_hidden',-1)])
def test_bad_settings(k, v):
    with pytest.raises(ValueError, match=f'{k} must be .*got {v}'): BYOL(**{k:v})
