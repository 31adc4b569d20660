"Where the second patch lies: that it lies there, with a gap, and what the lens must not tell"
import matplotlib
matplotlib.use('Agg')
import pytest
from utils import *
from fastai_contrastive.patches import least_patch
from fastai_contrastive.pretext.relative_patch import *

def coded(bs, h, w): return (torch.arange(h)[:,None]*1000.+torch.arange(w)).expand(bs,1,h,w).contiguous() # A pixel says where it is

dirs = [(-1,-1),(-1,0),(-1,1),(0,-1),(0,1),(1,-1),(1,0),(1,1)]
words = {-1:('above','left'), 0:('',''), 1:('below','right')}

@pytest.mark.parametrize('h,w,kw', [(64,64,{}), (40,71,{}), (96,96,dict(patch=16, gap=.25, jitter=.1)), (48,48,dict(gap=0, jitter=0))])
def test_the_second_patch_lies_where_the_answer_says(h, w, kw):
    torch.manual_seed(0)
    task = RelativePatch(colour=None, **kw)
    q,y = task.make(coded(400, h, w))
    p,gap,j = layout(min(h,w), task.gap, task.jitter, task.patch)
    at = torch.arange(p)
    top,left = (q[...,0,0,0]//1000).long(),(q[...,0,0,0]%1000).long()
    assert q.shape==(400,2,1,p,p) and torch.equal(q[:,:,0], (top[...,None,None]+at[:,None])*1000.+left[...,None,None]+at)
    assert set(y.tolist())==set(range(8))
    d = torch.stack([top[:,1]-top[:,0],left[:,1]-left[:,0]], 1)
    want = tensor(dirs)[y]*(p+gap)
    assert (d-want).abs().max()<=2*j
    if j: assert (d-want).abs().max()==2*j
    assert (d.abs().amax(1)>=p+gap-2*j).all() # Never a pixel in common
    assert top[:,0].unique().numel()>1 or 3*p+2*gap+2*j>=h

def test_answers_are_named():
    for (i,j),name in zip(dirs, RelativePatch.vocab): assert name==' '.join(o for o in (words[i][0],words[j][1]) if o)

def test_projection_by_its_matrix():
    a = tensor([[-1.,2.,-1.]])
    B = torch.eye(3)-a.T@a/(a@a.T)
    x = torch.rand(2,4,3,5,5)
    assert torch.allclose(project_colour(x), torch.einsum('ij,bnjhw->bnihw', B, x), atol=1e-6)

def test_projection_is_of_pixels():
    "A task that knows the statistics undoes them first"
    task = RelativePatch(colour='project')
    task.stats = dict(mean=[.1,.5,.9], std=[.2,.3,.1])
    x = torch.rand(4,3,48,48)
    torch.manual_seed(0); q,_ = task.make(task.normalised(x))
    torch.manual_seed(0); plain,_ = RelativePatch(colour=None).make(project_colour(x))
    assert torch.allclose(task.pixels(q, any_range=True), plain, atol=1e-5)

def test_one_channel_is_left():
    torch.manual_seed(0)
    x = torch.randn(50,2,3,8,8)+3
    d = drop_colour(x)
    kept = (d==x).flatten(3).all(3)
    assert torch.equal(kept.sum(2), torch.ones(50,2).long()) and len(kept.float().argmax(2).unique())==3
    assert not torch.equal(kept[:,0], kept[:,1]) # Drawn for each patch
    noise = d[~kept]
    assert noise.std()==pytest.approx(.01, rel=.1) and abs(noise.mean())<.01

@pytest.mark.parametrize('c', [1,3,5])
@pytest.mark.parametrize('bs,size', [(1,32),(5,37)])
def test_channels_sizes_and_encoders(c, bs, size):
    task,x = RelativePatch(),torch.rand(bs,c,size,size)
    was = x.clone()
    for enc in (create_encoder('xresnet18', c, widen=.125), create_encoder('vit_tiny_patch16_224', c, img_size=32, patch_size=8, depth=1, embed_dim=24, num_heads=2)):
        q,y = task.make(x)
        pred = PretextModel(enc, task.head(enc))(q)
        assert pred.shape==(bs,8) and torch.equal(x, was)
        task.loss_func(pred, y).backward()
        assert any(p.grad is not None and p.grad.abs().sum()>0 for p in enc.parameters())

@pytest.mark.parametrize('f,msg', [(lambda: RelativePatch(colour='green'), "'green'"), (lambda: RelativePatch(gap=-1), 'gap is'), (lambda: RelativePatch(gap=.1), 'half the gap'),
    (lambda: RelativePatch(patch=2), 'patch is a side'), (lambda: RelativePatch().make(torch.rand(2,3,17,40)), 'images of 17x40.*take images of 18 pixels'),
    (lambda: RelativePatch(colour='project').make(torch.rand(2,1,32,32)), "three channels.*got 1.*colour='drop'")])
def test_bad_input(f, msg):
    with pytest.raises(ValueError, match=msg): f()

def test_the_size_that_is_named_will_do(): assert RelativePatch().make(torch.rand(2,3,18,18))[0].shape[-1]==least_patch

def test_in_a_learner(tmp_path):
    learn = pretext_learner(make_dls(size=24, labelled=False), body(), RelativePatch(), path=tmp_path)
    fit(learn, 1, 'fit', 1e-3)
    with quietly(learn):
        assert learn.validate()==learn.validate()
        learn.show_batch(max_n=2)
        assert plt.gcf().axes[0].get_title() in RelativePatch.vocab
        learn.show_results(max_n=2)
    plt.close('all')
    res = fit(make_learn(PretextTerm(RelativePatch()), make_dls(size=24)))
    assert res.recorder.metric_names[4:6]==['relative_patch_loss','relative_patch_accuracy'] and np.isfinite(res.recorder.values[-1]).all()
