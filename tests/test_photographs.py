"What an encoder has kept of photographs: what is computed from pixels is what its name says, and labels have no part"
import pytest
from fastai.vision.all import *
from fastai_contrastive.data import *
from fastai_contrastive.encoder import create_encoder
from fastai_contrastive.evaluation.photographs import *

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

@pytest.fixture(scope='module')
def dls(): return synth_dls(size=32, bs=16, n=60)

class Peek(nn.Module):
    "An encoder that is any function of the batch"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

def test_turned_by_a_quarter_is_rot90():
    x = torch.rand(2,3,30,30)
    a,b = turned(x, tensor([0.,0.])),turned(x, tensor([90.,-90.]))
    torch.testing.assert_close(b[0], a[0].rot90(-1, (1,2)))
    torch.testing.assert_close(b[1], a[1].rot90(1, (1,2)))

@pytest.mark.parametrize('degrees', [-30,-11.,17,30])
def test_no_pixel_is_made_up(degrees):
    "The border of an image is nowhere to be seen in what was turned"
    x = torch.zeros(1,3,64,64)
    x[...,0] = x[...,-1] = x[...,0,:] = x[...,-1,:] = 1
    assert turned(x, tensor([degrees])).max()==0

def test_factors_of_pixels():
    x = torch.rand(4,3,20,20)
    f = {k:v(x) for k,v in photo_factors.items()}
    assert {k:tuple(v.shape) for k,v in f.items()}=={'colour':(4,3), "light's place":(4,2), 'contrast':(4,1), 'detail':(4,1), "lines' direction":(4,1)}
    half = {k:v(x/2) for k,v in photo_factors.items()}
    torch.testing.assert_close(half['colour'], f['colour']/2)
    torch.testing.assert_close(half['contrast'], f['contrast']/2)
    assert (half['detail']-f['detail']).abs().max()<.1
    flat = F.avg_pool2d(x, 5, 1, 2)
    assert (photo_factors['detail'](flat)<f['detail']-.5).all()
    torch.testing.assert_close(photo_factors["lines' direction"](x.mT), -f["lines' direction"])
    torch.testing.assert_close(photo_factors["light's place"](x.flip(3))[:,0], -f["light's place"][:,0])

def test_reads_what_is_there(dls):
    mean,wide = Peek(lambda x: x.mean((2,3))),Peek(lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1))
    a,b = probe_photographs(mean, dls, pbar=False),probe_photographs(wide, dls, pbar=False)
    assert a['colour']>99 and a["light's place"]<20 and b['colour']>95 and b["light's place"]>60

def test_needs_no_labels_and_moves_nothing():
    path = synth_dls(size=32, bs=16, n=60).path
    dls = unlabeled_dls(path, size=32, bs=16, valid_pct=.4, num_workers=0)
    enc = create_encoder('xresnet_narrow', nf=16, blocks=1).train()
    was,state = {k:v.clone() for k,v in enc.state_dict().items()},torch.get_rng_state()
    a = probe_photographs(enc, dls, n=40, pbar=False)
    assert set(a)=={*photo_factors,'turn'} and a==probe_photographs(enc, dls, n=40, pbar=False)
    assert enc.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, was[k]) for k,v in enc.state_dict().items())

@pytest.mark.parametrize('c', [1,5])
def test_other_channels(c):
    x = torch.rand(3,c,9,9)
    assert photo_factors['colour'](x).shape==(3,c) and all(torch.isfinite(f(x)).all() for f in photo_factors.values())

def test_broken_features(dls):
    with pytest.raises(ValueError, match='diverged'): probe_photographs(Peek(lambda x: x.mean((2,3))*math.nan), dls, pbar=False)

@pytest.mark.parametrize('n', [3,-5,2.5,None])
def test_too_few_to_ask(dls, n):
    with pytest.raises(ValueError, match='10 or more'): probe_photographs(Peek(lambda x: x.mean((2,3))), dls, n=n, pbar=False)

def test_too_few_that_there_are():
    few = unlabeled_dls(synth_dls(size=32, bs=16, n=60).path, folders='train', size=32, bs=4, valid_pct=.02, num_workers=0)
    assert len(few.valid_ds)<10
    with pytest.raises(ValueError, match='10 images'): probe_photographs(Peek(lambda x: x.mean((2,3))), few, pbar=False)

def test_normalised_in_another_way_is_said():
    "As everywhere that an encoder meets images: it would be judged by what it does not know"
    enc = create_encoder('xresnet_narrow', nf=16, blocks=1)
    enc.stats = dict(mean=[.1]*3, std=[.9]*3)
    with pytest.warns(UserWarning, match='normalised in two ways'): probe_photographs(enc, synth_dls(size=32, bs=16, n=60), n=20, pbar=False)

def test_without_normalize_pixels_are_the_same(monkeypatch):
    "What is asked about is computed from pixels of 0 to 1, however the loader normalises them"
    plain,norm = (unlabeled_dls(synth_dls(size=32, bs=16, n=60).path, size=32, bs=16, valid_pct=.4, num_workers=0, norm=o) for o in (None,imagenet_stats))
    seen,asked = [],[]
    see = Peek(lambda x: (seen.append(x), x.mean((2,3)))[1])
    monkeypatch.setitem(photo_factors, 'colour', lambda x: (asked.append(x), x.mean((2,3)))[1])
    a,b = (probe_photographs(see, o, n=16, pbar=False) for o in (plain,norm))
    assert 0<=seen[0].min() and seen[0].max()<=1 and seen[-1].min()<-1
    k = len(asked)//2
    for x,y in zip(asked[:k], asked[k:], strict=True): torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    assert a==pytest.approx(b, abs=.5)
