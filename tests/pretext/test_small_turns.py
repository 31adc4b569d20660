"Rotation at a fraction of the size: the same turns of a smaller image, made smaller without aliasing"
import pytest
from utils import *

@pytest.mark.parametrize('all_four', [False,True])
@pytest.mark.parametrize('size,scale,side', [(32,.5,16), (33,.5,16), (32,.75,24), (7,.1,1)])
def test_turns_of_the_smaller_image(all_four, size, scale, side):
    x = torch.rand(5,3,size,size)
    was = x.clone()
    q,k = Rotation(all_four, scale).make(x)
    small = F.interpolate(x, size=(side,side), mode='bilinear', antialias=True, align_corners=False)
    if all_four: small = small.repeat_interleave(4, 0)
    assert torch.equal(x, was) and q.shape==small.shape and torch.equal(q, torch.stack([torch.rot90(o, int(i), (1,2)) for o,i in zip(small, k)]))
    assert q.numel()==(4 if all_four else 1)*5*3*side**2

def test_no_aliasing():
    "Stripes of one pixel become grey, and not stripes again"
    x = (torch.arange(32)%2).float().expand(1,3,32,32)
    for scale in (.5,.4): assert (Rotation(scale=scale).make(x)[0][...,3:-3,3:-3]-.5).abs().max()<.13

def test_as_it_is_at_the_size_that_is_asked_about():
    learn = pretext_learner(make_dls(labelled=False), body(), Rotation(scale=.5))
    with quietly(learn):
        x = learn.get_preds(as_given=True, with_input=True)[0]
        clean = torch.cat([b[0].as_subclass(Tensor) for b in learn.dls.valid])
    assert x.shape==(12,3,8,8)
    assert torch.equal(x, Rotation(scale=.5).as_is(clean)) and torch.equal(Rotation().as_is(clean), clean)

@pytest.mark.parametrize('scale', [0,-.5,2,math.nan,'half'])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match='scale is a share'): Rotation(scale=scale)

def test_repr(): assert repr(Rotation(all_four=True, scale=.5))=='Rotation(all_four=True, scale=0.5)'
