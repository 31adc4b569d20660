"Colorization: Lab against the equations in double precision, bins and weights by hand, a task that is refused grey pictures"
import pytest
from utils import *
from fastai_contrastive.pretext.colorization import *
from fastai_contrastive.pretext.colorization import _chroma_prior

pytestmark = pytest.mark.usefixtures('strict')

# Lab of sRGB: published values for the corners of the cube (D65, 2 degrees), to two digits
corners = [((1,0,0),(53.24,80.09,67.20)), ((0,1,0),(87.73,-86.18,83.18)), ((0,0,1),(32.30,79.19,-107.86)), ((1,1,0),(97.14,-21.55,94.48)),
    ((0,1,1),(91.11,-48.09,-14.13)), ((1,0,1),(60.32,98.23,-60.82)), ((1,1,1),(100,0,0)), ((0,0,0),(0,0,0))]

def lab_by_hand(rgb):
    "From the chromaticities of sRGB's primaries and the CIE's definition, in double precision; rgb (n, 3)"
    xy = np.array([[.64,.33],[.30,.60],[.15,.06]])
    cols,white = np.array([[x/y,1,(1-x-y)/y] for x,y in xy]).T,np.array([.95047,1,1.08883])
    m = cols*np.linalg.solve(cols, white)
    rgb = np.asarray(rgb, dtype=np.float64)
    lin = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4)
    t = lin@m.T/white
    f = np.where(t>(6/29)**3, np.cbrt(t), t/(3*(6/29)**2)+4/29)
    return np.stack([116*f[:,1]-16, 500*(f[:,0]-f[:,1]), 200*(f[:,1]-f[:,2])], 1)

def as_image(rgb): return torch.as_tensor(np.asarray(rgb)).float().T[:,None] # (3, 1, n)

def test_lab_of_the_corners():
    got = rgb2lab(as_image([o[0] for o in corners]))[:,0].T
    assert np.allclose(got, [o[1] for o in corners], atol=.02)

def test_lab_against_the_equations():
    rgb = np.random.default_rng(0).random((500,3))
    rgb[:50] *= .03 # the linear part of the curve, and of the cube root
    assert np.allclose(rgb2lab(as_image(rgb))[:,0].T, lab_by_hand(rgb), atol=.02)

def test_lab_against_skimage():
    color = pytest.importorskip('skimage.color')
    rgb = np.random.default_rng(0).random((20,25,3))
    assert np.allclose(rgb2lab(torch.tensor(rgb).permute(2,0,1)).permute(1,2,0), color.rgb2lab(rgb), atol=1e-2)

def test_there_and_back():
    p = torch.rand(2,3,7,5)
    assert torch.allclose(lab2rgb(rgb2lab(p)), p, atol=1e-3)
    assert torch.allclose(rgb2lab(p.half()), rgb2lab(p), atol=1.) and rgb2lab(p+5).isfinite().all()

def test_bins_are_what_sRGB_reaches():
    bins = gamut_bins()
    assert len(bins)==len(bins.unique(dim=0)) and (bins%10==0).all() and torch.equal(bins, gamut_bins(10, 'cpu'))
    v = np.random.default_rng(1).random((3000,3))
    near = {tuple(o) for o in (np.round(lab_by_hand(v)[:,1:]/10)*10+0.).tolist()}
    assert near <= {tuple(o) for o in (bins+0.).tolist()}

def bins_loss_by_hand(pred, ab, k, uniform):
    "Pixel by pixel"
    bins = gamut_bins().double()
    prior = torch.exp(-bins.norm(dim=1)/8)
    prior /= prior.sum()
    w = 1/((1-uniform)*prior+uniform/len(bins))
    w /= (prior*w).sum()
    res = []
    for b in range(len(ab)):
        for i in range(ab.shape[2]):
            for j in range(ab.shape[3]):
                d = (bins-ab[b,:,i,j].double()).norm(dim=1)
                near = d.argsort()[:k]
                g = torch.exp(-d[near]**2/(2*5.**2))
                z = torch.zeros(len(bins)).double()
                z[near] = g/g.sum()
                res.append(-w[d.argmin()]*(z*pred[b,:,i,j].double().log_softmax(0)).sum())
    return torch.stack(res).view(len(ab), -1).mean(1)

@pytest.mark.parametrize('k,uniform', [(5,.5), (1,1.), (3,.1)])
def test_the_loss_by_hand(k, uniform):
    ab,pred = rgb2lab(torch.rand(2,3,3,4))[:,1:],torch.randn(2,260,3,4)*2
    want = bins_loss_by_hand(pred, ab, k, uniform)
    assert torch.allclose(ColourBins(10, k, uniform)(pred, None, ab), want.mean().float(), rtol=1e-4)
    assert torch.allclose(ColourBins(10, k, uniform, reduction='none')(pred, None, ab), want.float(), rtol=1e-4)

def test_rebalanced():
    prior = tensor([.7,.2,.1])
    for u in (.1,.5,1.):
        w = rebalanced(prior, u)
        assert torch.isclose((w*prior).sum(), tensor(1.)) and torch.allclose(w*((1-u)*prior+u/3), (w*((1-u)*prior+u/3))[0])
    assert (rebalanced(prior).diff()>0).all() and torch.allclose(rebalanced(prior, 1.), torch.ones(3))

def test_decoding_lies_between_mean_and_mode():
    loss,bins = ColourBins(),gamut_bins()
    p = torch.zeros(1,260,1,1)
    p[0,[10,200]] = tensor([.7,.3])[:,None,None]
    got = loss.decodes(p)[0,:,0,0]
    a = .7**(1/.38)/(.7**(1/.38)+.3**(1/.38))
    assert torch.allclose(got, a*bins[10]+(1-a)*bins[200], atol=.1) and a>.85
    one = F.one_hot(tensor([[[17]]]), 260).permute(0,3,1,2).float()
    assert torch.allclose(loss.decodes(one)[0,:,0,0], bins[17], atol=1e-2)

def test_values():
    loss = ColourValues()
    ab = torch.randn(3,2,4,4)*30
    assert loss(ab/20, None, ab)<1e-8 and torch.allclose(loss(ab/20+1, None, ab), tensor(2.))
    assert torch.equal(loss.decodes(loss.activation(ab/20)), ab/20*20) and loss.colour_error(ab/20, None, ab)<1e-4

@pytest.mark.parametrize('size', [(16,16), (30,17), (5,3)])
def test_the_question_has_the_lightness_and_no_colour(size):
    task = Colorization()
    task.stats = dict(mean=[.5,.4,.3], std=[.2,.3,.4])
    p = torch.rand(4,3,*size)
    x = task.normalised(p)
    was = x.clone()
    q,(clean,ab) = task.make(x)
    assert torch.equal(x, was) and torch.equal(clean, x) and q.shape==x.shape and ab.shape==(4,2,-(-size[0]//4),-(-size[1]//4))
    lab = rgb2lab(task.pixels(q))
    assert lab[:,1:].abs().max()<.1 and torch.allclose(lab[:,0], rgb2lab(p)[:,0], atol=.05)
    one = rgb2lab(p[...,:4,:3].mean((2,3), keepdim=True))[:,1:,0,0]
    if size==(5,3): assert torch.allclose(rgb2lab(F.adaptive_avg_pool2d(p, (2,1)))[:,1:], ab) and not torch.allclose(ab[...,0,0], one, atol=1e-3)

def test_a_true_answer_is_the_picture():
    "Bins of each pixel's own colour, drawn: within a bin's width of the picture"
    task = Colorization(every=1, neighbours=1)
    x = .3+.4*torch.rand(2,3,8,8)
    q,y = task.make(x)
    share,i = task.loss_func.encode(y[1])
    pred = torch.zeros(2,260,8,8).scatter_(1, i, share)
    assert (task.said(q, y, pred)-x).abs().mean()<.03 and (task.said(q, y, y[1])-x).abs().max()<.01
    assert task.loss_func.colour_error(pred.clamp(min=1e-6).log(), *y)<7.1

def test_grey_pictures_are_refused():
    with pytest.raises(ValueError, match='the images have 1'): Colorization().make(torch.rand(4,1,8,8))
    with pytest.raises(ValueError, match='the encoder takes 1'): Colorization().head(create_encoder('xresnet18', 1, widen=.125))
    grey = torch.rand(4,1,8,8).expand(-1,3,-1,-1)
    with pytest.raises(ValueError, match='all images of a batch are grey'): Colorization().make(grey)
    task = Colorization()
    task.make(torch.rand(4,3,8,8))
    task.make(grey) # a grey photograph among others
    Colorization().make(grey[:1])

@pytest.mark.parametrize('kw,match', [(dict(step=0), 'step'), (dict(neighbours=500), 'neighbours=500 of 260'), (dict(uniform=2), 'uniform'), (dict(every=.5), 'every'),
    (dict(prior=torch.ones(5)), r'each of the 260 bins.*\(5,\).*colour_prior')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): Colorization(**kw)

def test_prior_is_counted():
    dls = make_dls(labelled=False)
    prior = colour_prior(dls, 20)
    x = torch.stack([o[0] for o in dls.train.dataset])
    ab = rgb2lab(F.adaptive_avg_pool2d(x.as_subclass(Tensor), 4))[:,1:]
    share,i = ColourBins(20).encode(ab)
    want = torch.zeros(len(prior)).index_add_(0, i.flatten(), share.flatten())
    assert torch.allclose(prior, want/want.sum(), atol=1e-6) and torch.isclose(prior.sum(), tensor(1.))
    assert not torch.allclose(prior, _chroma_prior(gamut_bins(20)), atol=.1)

@pytest.mark.parametrize('task', [Colorization(step=20), Colorization(bins=False)], ids=str)
def test_it_learns_and_is_shown(task):
    learn = pretext_learner(make_dls(labelled=False), body(), task)
    fit(learn, 4, 'fit_one_cycle', 1e-2)
    first,last = learn.recorder.values[0][1],learn.recorder.values[-1]
    assert last[1]<first and np.isfinite(last).all()
    with quietly(learn):
        assert learn.validate()==learn.validate()
        learn.show_batch()
        learn.show_results()
        said,dec,raw = learn.predict(learn.dls.valid_ds[0][0])
        assert said.shape==(3,16,16) and dec.shape==(2,4,4)
        p,y,l = learn.get_preds(with_loss=True)
    assert l.shape==(12,) and np.isclose(l.mean().item(), learn.validate()[0], rtol=1e-3)

@pytest.mark.parametrize('task', [Colorization(step=20), Colorization(bins=False)], ids=str)
def test_as_a_term(task):
    cb = PretextTerm(task)
    learn = fit(make_learn([cb, term(name='simclr')]))
    assert np.isfinite(learn.recorder.values[-1]).all() and 'colorization_colour_error' in learn.recorder.metric_names
    c = deepcopy(learn)
    assert torch.equal(head_ws(c.colorization), head_ws(cb))
