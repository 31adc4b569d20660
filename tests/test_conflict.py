"Shape against texture or ground: the images are what they are said to be, and encoders that know one cue follow it"
import pytest
from fastai.vision.all import *
from fastai_contrastive.drawn import *
from fastai_contrastive.encoder import create_encoder
from fastai_contrastive.evaluation import conflict
from fastai_contrastive.evaluation.conflict import *
from fastai_contrastive.evaluation.conflict import _pairs

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

def rng(i=0): return np.random.default_rng(i)
def pixels(*args, **kw): return np.asarray(draw_shape(*args, **kw), dtype=float)

def test_what_is_told_is_all_that_changes():
    "Outside the object a told texture changes nothing, a told ground nothing but its colour, and the generator goes on as ever"
    for i in range(6):
        a,b,r = rng(i),rng(i),rng(i)
        x,y,z = pixels('disk', a, 48),pixels('disk', b, 48, texture='striped'),pixels('disk', r, 48, ground=(.1,.5,.1))
        assert a.bit_generator.state==b.bit_generator.state==r.bit_generator.state
        same = np.abs(x-y).max(2)<1
        assert same[:4].all() and same[-4:].all() and not same.all()
        assert (np.abs(x-z).max(2)<1).any() and z[:3].mean((0,1))[1]>z[:3].mean((0,1))[[0,2]].max()

@pytest.mark.parametrize('i', range(4))
def test_textures_can_be_told_apart(i):
    "The same scene with each texture: on the object any two differ by a twentieth of white and more, elsewhere they do not"
    ims = [pixels('square', rng(i), 64, texture=o)/255 for o in ('plain','shaded','striped','cloudy')]
    on = np.abs(ims[0]-ims[1]).max(2)>.02
    assert 100<on.sum()<2000
    for j,a in enumerate(ims):
        for b in ims[:j]: assert np.abs(a-b)[on].mean()>.05 and np.abs(a-b)[~on].mean()<.01

def test_pairs():
    fit,agree,apart = _pairs(30)
    assert all(i==j for i,j in fit+agree) and all(i!=j for i,j in apart)
    for what,n in ((fit,30),(agree,30),(apart,10)): assert set(map(what.count, what))=={n}
    assert len(set(apart))==12 and len(apart)==120

class Told(nn.Module):
    "An encoder that was told the images' pairs, in order, and gives one of the two"
    def __init__(self, i): super().__init__(); self.i,self.at = i,0
    def forward(self, x):
        pairs = tensor(sum(_pairs(30), []))[self.at:self.at+len(x),self.i]
        self.at += len(x)
        return F.one_hot(pairs, 4).float()

@pytest.mark.parametrize('cue', list(conflict_cues))
def test_follows_what_the_features_hold(cue):
    by_shape,by_cue = probe_conflict(Told(0), cue, n=30),probe_conflict(Told(1), cue, n=30)
    assert by_shape=={'agree':100, 'shape':100, cue:0} and by_cue=={'agree':100, 'shape':0, cue:100}

def test_the_same_each_time_and_nothing_is_moved():
    enc = create_encoder('xresnet_narrow', nf=16, blocks=1).train()
    was,state = {k:v.clone() for k,v in enc.state_dict().items()},torch.get_rng_state()
    a = probe_conflict(enc, n=9)
    assert a==probe_conflict(enc, n=9) and enc.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, was[k]) for k,v in enc.state_dict().items())
    assert probe_conflict(enc, n=9, seed=1)!=a

def test_normalised_as_the_encoder_was_trained(monkeypatch):
    seen = []
    class See(nn.Module):
        def forward(self, x): seen.append(x); return x.mean((2,3))
    probe_conflict(See(), n=3)
    monkeypatch.setattr(conflict, '_norm_of', lambda *_: ([0.]*3,[1.]*3))
    probe_conflict(See(), n=3)
    mean,std = (tensor(o)[:,None,None] for o in imagenet_stats)
    assert seen[1].min()>=0 and seen[1].max()<=1 and torch.allclose(seen[0], (seen[1]-mean)/std)

@pytest.mark.parametrize('kw,says', [(dict(cue='fur'), 'texture, ground'), (dict(n=2), '3 or more'), (dict(n=5.), '3 or more')])
def test_refusals(kw, says):
    with pytest.raises(ValueError, match=says): probe_conflict(nn.Flatten(), **kw)

def test_other_channels_and_broken_features():
    with pytest.raises(ValueError, match='takes 1'): probe_conflict(create_encoder('xresnet_narrow', n_in=1, nf=16, blocks=1), n=3)
    class Nan(nn.Module):
        def forward(self, x): return x.mean((2,3))*math.nan
    with pytest.raises(ValueError, match='diverged'): probe_conflict(Nan(), n=3)

@pytest.mark.parametrize('ground', [(128,20,20), (.1,.1), .5, (-.1,.2,.3)])
def test_a_ground_that_is_no_colour(ground):
    with pytest.raises(ValueError, match='0 to 1'): draw_shape('disk', rng(), 32, ground=ground)

def test_an_empty_name_is_no_texture():
    with pytest.raises(ValueError, match='plain, shaded'): draw_shape('disk', rng(), 32, texture='')

@pytest.mark.parametrize('pair', [(-1,0), (0,4), (0,-2)])
def test_other_classes(pair):
    with pytest.raises(ValueError, match='0 to 3'): draw_conflict(*pair, rng())
