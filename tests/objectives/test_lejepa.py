"LeJEPA against the paper's algorithms, in float64 and one direction at a time"
import cmath, pytest
from utils import *
from fastai_contrastive.views import *
from fastai_contrastive.objectives.lejepa import *

def epps_pulley(x, knots=17, t_max=5.):
    "The statistic of one sample: complex numbers, all of the interval"
    dt = 2*t_max/(knots-1)
    ts = [-t_max+i*dt for i in range(knots)]
    err = [abs(sum(cmath.exp(1j*t*v) for v in x)/len(x)-math.exp(-t*t/2))**2*math.exp(-t*t/2) for t in ts]
    return len(x)*sum((a+b)/2*dt for a,b in zip(err, err[1:]))

def sigreg_by_hand(z, dirs, **kw): return sum(epps_pulley((z.double()@a.double()).tolist(), **kw) for a in dirs.T)/dirs.shape[1]

def unit_dirs(dim, k): return F.normalize(torch.randn(dim, k), dim=0)

@pytest.mark.parametrize('n,dim,k,knots,scale', [(2,3,4,17,1.), (13,5,7,17,1.), (32,4,3,9,3.), (9,4,3,33,.01)])
def test_sigreg(n, dim, k, knots, scale):
    z,dirs = torch.randn(n, dim)*scale+.3,unit_dirs(dim, k)
    assert abs(sigreg(z, dirs, knots).item()-sigreg_by_hand(z, dirs, knots=knots))<2e-5

def test_sigreg_of_one_point():
    "All at zero: n times the integral of (1-e^{-t²/2})² e^{-t²/2}, which has a closed form on the whole line"
    want = math.sqrt(2*math.pi)*(1-2/math.sqrt(2)+1/math.sqrt(3))
    assert abs(sigreg(torch.zeros(10,3), unit_dirs(3,5), knots=201).item()/10-want)<1e-3

def lejepa_by_hand(zs, dirs, lambd, n_global):
    zs = [z.double() for z in zs]
    n,dim = zs[0].shape
    pred = 0.
    for i in range(n):
        mu = sum(z[i] for z in zs[:n_global])/n_global
        pred += sum(((mu-z[i])**2).sum().item() for z in zs)/(n*dim*len(zs))
    return (1-lambd)*pred + lambd*sum(sigreg_by_hand(z, dirs) for z in zs)/len(zs)

@pytest.mark.parametrize('views,n_global,lambd', [(2,2,.05), (4,2,.3), (3,3,0.), (2,1,1.)])
def test_loss(views, n_global, lambd):
    o = LeJEPA(lambd, slices=6, dim=5, n_global=n_global).train()
    for _ in range(2):
        zs,dirs = [torch.randn(7,5)*(i+1) for i in range(views)],o.directions()
        assert abs(o.loss(zs, None, None).item()-lejepa_by_hand(zs, dirs, lambd, n_global))<2e-5

def test_gradient_flows_to_the_mean_too():
    "Nothing is stopped: a small view pulls the global ones, through their mean, as it is pulled"
    o = LeJEPA(lambd=0., dim=3)
    a,b,c = (torch.randn(5,3, requires_grad=True) for _ in range(3))
    o.loss([a,b,c], None, None).backward()
    n,mu = 3*a.numel(),(a+b).detach()/2
    assert torch.allclose(c.grad, 2*(c-mu).detach()/n, atol=1e-6)
    assert torch.allclose(a.grad+b.grad, -c.grad, atol=1e-6) and c.grad.abs().sum()>.1

def test_small_views_follow_the_global_ones():
    "The mean is of the global views alone: a small view's embedding does not move it"
    o = LeJEPA(lambd=0., dim=3)
    a,b = torch.zeros(4,3),torch.zeros(4,3)
    assert abs(o.loss([a,b,torch.ones(4,3)], None, None).item()-1/3)<1e-6

def test_directions():
    o = LeJEPA(dim=5, slices=50)
    torch.manual_seed(1); d = o.directions()
    torch.manual_seed(2); e = LeJEPA(dim=5, slices=50).directions()
    assert torch.equal(d, e), 'each process has random numbers of its own, and still the same directions'
    assert torch.allclose(d.norm(dim=0), torch.ones(50), atol=1e-6) and d.shape==(5,50)
    z,state = torch.randn(2,6,5),torch.get_rng_state()
    o.eval().loss(z, None, None)
    assert torch.equal(o.directions(), d), 'validation changes nothing'
    o.train().loss(z, None, None)
    assert not torch.equal(o.directions(), d) and o.step==1
    p = LeJEPA(dim=5, slices=50)
    p.load_state_dict(o.state_dict())
    assert torch.equal(p.directions(), o.directions()) and torch.equal(torch.get_rng_state(), state)

def test_with_small_views_in_a_learner():
    o = LeJEPA(dim=4, hidden=8, slices=8)
    learn = fit(contrastive_learner(make_dls(size=32), body(), o, o.views().but(n_small=2, small_scale=(.1,.3))))
    assert np.isfinite(learn.recorder.values[-1][0]) and o.step==3

def test_bad_settings():
    for kw,msg in ((dict(lambd=1.5),'lambd must be from 0 to 1: got 1.5'), (dict(knots=16),'knots must be odd'), (dict(knots=1),'knots must be odd'),
                   (dict(slices=0),'slices must be'), (dict(dim=0),'dim must be'), (dict(n_global=0),'n_global must be')):
        with pytest.raises(ValueError, match=msg): LeJEPA(**kw)
