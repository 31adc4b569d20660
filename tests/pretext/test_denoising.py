"Denoising: what the noise is, what is judged, and that residual and plain are the same question"
import pytest
from utils import *
from fastai_contrastive.asked import tuple_of
from fastai_contrastive.pretext.denoising import *

pytestmark = pytest.mark.usefixtures('strict')

stats = dict(mean=[.5,.4,.3], std=[.2,.3,.4])
def ready(*args, **kwargs):
    task = Denoising(*args, **kwargs)
    task.stats = stats
    return task

def test_levels_are_in_pixels():
    "However the images are normalised"
    task = ready('gaussian', .2)
    x = task.normalised(torch.full((8,3,64,64), .5))
    q,(clean,noisy) = task.make(x)
    assert torch.equal(clean, x) and torch.equal(q, noisy)
    assert torch.allclose((task.pixels(q)-.5).std((0,2,3)), tensor([.2]*3), atol=.01)
    for kind in ('salt','mask'):
        task = ready(kind, .3)
        assert abs(((task.make(x)[0]-x).abs().amax(1)>1e-4).float().mean()-.3)<.02

def test_what_each_kind_puts_there():
    x = ready().normalised(torch.rand(8,3,32,32)*.8+.1)
    q = ready('salt', .5).make(x)[0]
    p = ready().pixels(q)
    hit = (q-x).abs().amax(1)>1e-4
    for v in (0.,1.): assert abs(((p-v).abs().amax(1)<1e-4)[hit].float().mean()-.5)<.05
    q = ready('mask', .5).make(x)[0]
    hit = (q-x).abs().amax(1)>1e-4
    assert (q.movedim(1,-1)[hit]).abs().max()<1e-5 # the mean colour, all channels at once

def test_levels_and_kinds_are_drawn_for_each_image():
    task = Denoising('gaussian', (.05,.4))
    s = (task.make(torch.full((400,3,16,16), .5))[0]-.5).flatten(1).std(1)
    assert .03<s.min()<.09 and .35<s.max()<.45 and abs(s.mean()-.225)<.02
    q = Denoising(['salt','mask'], .4).make(torch.full((300,3,16,16), .3))[0]
    kinds = ((q==1).flatten(1).any(1)).float().mean() # pepper and salt; what is masked is 0, as pixels are here
    assert .4<kinds<.6

def test_x_is_left_alone():
    for kind in noise_kinds:
        x = torch.rand(4,3,8,8)
        was = x.clone()
        Denoising(kind).make(x)
        assert torch.equal(x, was)

@pytest.mark.parametrize('loss', ['l1','l2'])
def test_the_loss_by_hand(loss):
    pred,x,noisy = torch.randn(3,4,3,8,8).unbind(0)
    d = (pred-x).double()
    assert torch.isclose(Denoising(loss=loss).loss_func(pred, x, noisy).double(), d.abs().mean() if loss=='l1' else (d*d).mean(), atol=1e-5)
    assert torch.isclose(noise_left(pred, x, noisy).double(), (d*d).sum()/((noisy-x).double()**2).sum(), atol=1e-5)

def test_residual_is_added():
    task = ready(residual=True)
    enc = create_encoder(body())
    head = task.head(enc)
    q,(x,noisy) = task.make(torch.rand(2,3,16,16))
    for p in head.parameters(): nn.init.zeros_(p)
    assert torch.equal(PretextModel(enc, head)(*q), noisy) and noise_left(PretextModel(enc, head)(*q), x, noisy)==1
    set_seed(5)
    a = ready('gaussian', .3).make(x)
    set_seed(5)
    b = ready('gaussian', .3, residual=True).make(x)
    assert torch.equal(a[0], b[0][0]) and torch.equal(a[1][1], b[1][1])

@pytest.mark.parametrize('kw,match', [(dict(kind='gauss'), "'gauss'.*gaussian, salt, mask"), (dict(kind=[]), 'empty'), (dict(level=0), 'above 0'), (dict(level=(.5,.2)), 'least'),
    (dict(level=25), '25'), (dict(loss='l3'), "'l3'"), (dict(nh=0), 'nh')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): Denoising(**kw)

@pytest.mark.parametrize('c,size', [(1,(16,16)), (5,(17,30))])
@pytest.mark.parametrize('residual', [False,True])
def test_other_images(c, size, residual):
    task = Denoising([*noise_kinds], residual=residual)
    enc = create_encoder(nn.Sequential(ConvLayer(c, 8, stride=2), ConvLayer(8, 12, stride=2)), c)
    q,a = task.make(torch.rand(2,c,*size))
    assert PretextModel(enc, task.head(enc))(*tuple_of(q)).shape==(2,c,*size)

@pytest.mark.parametrize('residual', [False,True])
def test_it_learns_and_is_shown(residual):
    learn = pretext_learner(make_dls(labelled=False), body(), Denoising(residual=residual))
    fit(learn, 6, 'fit_one_cycle', 1e-2)
    vals = [o[2] for o in learn.recorder.values]
    assert vals[-1]<vals[0] and np.isfinite(vals).all()
    with quietly(learn):
        assert learn.validate()==learn.validate()
        want = learn.validate()[0]
        learn.show_batch()
        learn.show_results()
        assert learn.predict(learn.dls.valid_ds[0][0])[0].shape==(3,16,16)
        l = learn.get_preds(with_loss=True)[2]
    assert l.shape==(12,) and np.isclose(l.mean().item(), want, rtol=1e-4), (l.mean(), want)

def test_as_a_term():
    cb = PretextTerm(Denoising(residual=True))
    learn = fit(make_learn([cb, term(name='simclr')]))
    assert np.isfinite(learn.recorder.values[-1]).all() and 'denoising_noise_left' in learn.recorder.metric_names
    assert torch.equal(head_ws(deepcopy(learn).denoising), head_ws(cb))
