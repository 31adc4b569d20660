"Masks, some of a transformer's tokens, MAE: against attention masks and patch-by-patch sums, what must not be seen, what is refused"
import pytest, timm
import torch.nn.functional as F
from copy import deepcopy
from safetensors.torch import load_file
from utils import *
from fastai_contrastive.data import unlabeled_dls
from fastai_contrastive.encoder import create_encoder, load_encoder, save_encoder
from fastai_contrastive.masks import *
from fastai_contrastive.pretext.mae import *
from fastai_contrastive.tokens import *

pytestmark = pytest.mark.usefixtures('strict')
small = dict(dynamic_img_size=True, patch_size=8, depth=1, embed_dim=24, num_heads=2)
def vit(name='vit_tiny_patch16_224', n_in=3, **kwargs): return create_encoder(name, n_in, **{**small, **kwargs})
def up(m, k): return m.repeat_interleave(k, 2).repeat_interleave(k, 3)
def learner(task=None, enc=None, size=32, **kwargs):
    return pretext_learner(make_dls(size=size, n=16), enc or vit(), task or MAE(patch=8, dim=16, depth=1), **kwargs)

# Masks

@pytest.mark.parametrize('grid,area,n', [((2,6),.5,6), ((1,4),.75,3), (4,.75,12), ((3,5),.01,1)])
def test_random_cells_of_any_grid(grid, area, n):
    m = random_cells(32, grid, area)
    assert m.shape==(32,1,*(grid if isinstance(grid, tuple) else (grid,grid))) and (m.sum((1,2,3))==n).all() and n_hidden(grid, area)==n
    assert len({tuple(o.flatten().tolist()) for o in m})>3

def test_squares_are_whole():
    x = torch.rand(3,2,24,32)
    m = random_squares(x, 8, .5)
    cells = m.view(3, 3, 8, 4, 8)
    assert m.shape==(3,1,24,32) and (cells.amax((2,4))==cells.amin((2,4))).all() and (m.sum((1,2,3))==6*64).all()

@pytest.mark.parametrize('size,side,match', [((50,32),16,r'T\(\) hides squares of 16.*50x32.*48x32 or 64x48'), ((8,8),16,'16x16 or 32x32'),
    ((16,16),16,'all of them'), ((32,32),0,'whole number'), ((32,32),8.,'whole number')])
def test_squares_that_do_not_fit(size, side, match):
    with pytest.raises(ValueError, match=match): random_squares(torch.rand(2,3,*size), side, .5, 'T()')

# Tokens

encoders = dict(vit=lambda: vit(), dist=lambda: vit('deit_tiny_distilled_patch16_224'), avg=lambda: vit(class_token=False, global_pool='avg'),
    reg=lambda: vit(reg_tokens=3, no_embed_class=True), pre=lambda: vit(pre_norm=True), oblong=lambda: vit(patch_size=(8,4)))

@pytest.mark.parametrize('kind', encoders)
@pytest.mark.parametrize('size', [(32,32), (24,40)])
def test_some_tokens_are_those_of_a_pass_in_which_the_others_are_not_looked_at(kind, size):
    "The referee is timm's own attention mask: all tokens run, and none attends to a hidden one"
    enc = encoders[kind]().eval()
    net,x,n = enc.body,torch.randn(2,3,*size),math.prod(token_grid(enc, size))
    keep = torch.stack([torch.randperm(n)[:n//3] for _ in x])
    pre = net.num_prefix_tokens
    seen = torch.cat([torch.ones(2,pre).bool(), torch.zeros(2,n).bool().scatter(1, keep, True)], 1)
    full = net.forward_features(x, attn_mask=seen[:,None,None].expand(-1,-1,n+pre,-1))
    want = torch.cat([full[:,:pre], torch.stack([f[pre:][k] for f,k in zip(full, keep)])], 1)
    assert torch.allclose(some_tokens(enc, x, keep), want, atol=1e-5)

@pytest.mark.parametrize('kind', encoders)
def test_all_tokens_are_the_full_pass(kind):
    enc = encoders[kind]().eval()
    x = torch.randn(2,3,40,32)
    n = math.prod(token_grid(enc, (40,32)))
    f = some_tokens(enc, x, torch.arange(n).expand(2,-1))
    for a,b in zip((enc._pool(f),enc._maps(f, (40,32))), enc.both(x)): assert torch.allclose(a, b, atol=1e-6)

@pytest.mark.parametrize('make,why', [(lambda: create_encoder(body()), 'no tokens'), (lambda: create_encoder('xresnet_narrow', nf=32, blocks=1), 'no tokens'),
    (lambda: vit(patch_drop_rate=.5), 'drops patches itself'), (lambda: create_encoder('swin_tiny_patch4_window7_224', img_size=28, window_size=7, embed_dim=12, depths=(1,), num_heads=(1,)), 'no tokens'),
    (lambda: create_encoder('eva02_tiny_patch14_224', img_size=28, depth=1, embed_dim=24, num_heads=2), 'rotary')], ids=['body','xresnet','drops','swin','rope'])
def test_encoders_without_tokens(make, why):
    enc = make()
    assert not has_tokens(enc)
    with pytest.raises(ValueError, match=rf'MAE\(\) needs an encoder with tokens.*{why}.*vit_small'): MAE().check(enc)
    with pytest.raises(ValueError, match='tokens'): MAE().head(enc)

def test_hooks_are_gone_whatever_happens():
    enc = vit()
    x,keep = torch.randn(2,3,32,32),torch.tensor([[0,1],[2,99]])
    with pytest.raises(RuntimeError): some_tokens(enc, x, keep)
    with pytest.raises(RuntimeError): masked_maps(enc, x, torch.zeros(2,1,32,32).bool(), torch.zeros(7))
    assert not any(o._forward_hooks or o._forward_pre_hooks for o in enc.modules())

def test_masked_maps_by_hand():
    enc,x,token = vit(reg_tokens=2).eval(),torch.randn(2,3,24,32),torch.randn(24)
    net,m = enc.body,random_cells(2, (3,4), .5)
    t = torch.where(m[:,0,...,None], token, net.patch_embed(x))
    want = net.norm(net.blocks(net._pos_embed(t)))[:,3:].transpose(1,2).view(2,24,3,4)
    assert torch.allclose(masked_maps(enc, x, up(m, 8), token), want, atol=1e-6)

# The loss

@pytest.mark.parametrize('norm', [True,False])
def test_loss_patch_by_patch(norm):
    x,pred = torch.randn(3,2,16,24)*2+1,torch.randn(3,2,16,24)
    m = random_cells(3, (2,3), .5)
    each = []
    for p,t,mm in zip(pred, x, m):
        es = []
        for i,j in mm[0].nonzero():
            at = np.s_[:,8*i:8*i+8,8*j:8*j+8]
            want = (t[at]-t[at].mean())/(t[at].var(correction=0)+1e-6).sqrt() if norm else t[at]
            es.append(((p[at]-want)**2).mean())
        each.append(torch.stack(es).mean())
    close(PatchLoss(8, norm)(pred, x, up(m, 8)), torch.stack(each).mean(), eps=1e-5)
    close(PatchLoss(8, norm, 'none')(pred, x, up(m, 8)), torch.stack(each), eps=1e-5)

# The task

def test_make_hides_and_leaves_the_images_alone():
    x = torch.rand(4,3,32,48)+1
    was = x.clone()
    (holes,m),(clean,m2) = MAE(patch=8).make(x)
    mm = m.expand_as(x)
    assert torch.equal(x, was) and torch.equal(clean, x) and m is m2
    assert (holes[mm]==0).all() and torch.equal(holes[~mm], x[~mm]) and (m.sum((1,2,3))==18*64).all()

@pytest.mark.parametrize('patch,kw', [(8,{}), (16,{}), (8,dict(patch_size=(8,4))), (8,dict(reg_tokens=4))])
def test_the_encoder_sees_what_is_left_and_nothing_else(patch, kw):
    enc = vit(**kw)
    task = MAE(patch=patch, dim=16, depth=1)
    head,seen = task.head(enc),[]
    (x,m),_ = task.make(torch.randn(3,3,64,32))
    enc.body.blocks[0].register_forward_hook(lambda o,a,r: seen.append(r.shape[1]))
    grid = token_grid(enc, (64,32))
    keep = head._keep(m, grid)
    for k,o in zip(keep, to_tokens(m, grid)): assert sorted(k.tolist())==(~o.flatten()).nonzero()[:,0].tolist()
    x.requires_grad_()
    pred = PretextModel(enc, head)(x, m)
    assert seen==[math.prod(grid)//4+enc.body.num_prefix_tokens] and pred.shape==x.shape
    pred.pow(2).sum().backward()
    g = x.grad.abs().sum(1, keepdim=True)
    assert (g[m]==0).all() and (g[~m]>0).any() and head.token.grad.abs().sum()>0

def test_patches_come_back_to_their_places():
    enc = vit()
    head = MAE(patch=8, dim=16, depth=1).head(enc)
    f,keep = torch.randn(2,1+6,16),torch.stack([torch.randperm(24)[:6] for _ in range(2)])
    y = head._placed(f, keep, (4,6))
    pos = torch.cat([torch.zeros(1,16), sincos2d((4,6), 16)])
    for yy,ff,k in zip(y-pos, f, keep):
        assert torch.allclose(yy[0], ff[0]) and torch.allclose(yy[1+k], ff[1:], atol=1e-6)
        rest = [i for i in range(24) if i not in k.tolist()]
        assert torch.allclose(yy[1:][rest], head.token.expand(18, -1), atol=1e-6)
    class Count(nn.Module):
        def forward(self, y): return torch.arange(y.shape[1]).float()[:,None].expand(len(y), -1, 3*64)
    head.out = Count()
    x = torch.rand(2,3,32,48)
    (holes,m),_ = MAE(patch=8).make(x)
    assert torch.equal(head(enc, holes, m)[1,2,::8,::8], torch.arange(24).float().view(4,6))

def test_the_class_token_is_trained():
    enc = vit()
    head = MAE(patch=8, dim=16, depth=1).head(enc)
    f = torch.randn(2,5,16, requires_grad=True)
    y = head.blocks(head._placed(f, torch.arange(4).expand(2,-1), (4,4)))
    head.out(y[:,-16:]).pow(2).sum().backward()
    assert f.grad[:,0].abs().sum()>0

def test_positions_tell_places_apart():
    pos = sincos2d((7,9), 32)
    assert pos.shape==(63,32) and (torch.cdist(pos, pos)+10*torch.eye(63)).min()>.3
    a = pos.view(7,9,32)
    assert torch.allclose(a[2,:,:16], a[2,:1,:16].expand(9,-1)) and torch.allclose(a[:,3,16:], a[:1,3,16:].expand(7,-1))

@pytest.mark.parametrize('kw,match', [(dict(area=1.), 'between 0 and 1'), (dict(patch=0), 'whole number'), (dict(patch=8.), 'whole number'), (dict(dim=30), 'multiple of 4'), (dict(depth=0), 'depth')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): MAE(**kw)

def test_squares_that_are_no_patches():
    with pytest.raises(ValueError, match=r'MAE\(patch=12\) hides squares of 12.*8x8.*patch=8'): MAE(patch=12).head(vit())
    with pytest.raises(ValueError, match='patch=24'): MAE().head(vit(patch_size=(8,12)))

@pytest.mark.parametrize('c', [1,5])
def test_channels(c):
    enc,task = vit(n_in=c),MAE(patch=8, dim=16, depth=1)
    q,a = task.make(torch.randn(2,c,32,32))
    assert task.loss_func(PretextModel(enc, task.head(enc))(*q), *a).isfinite()

def test_half_precision_and_a_batch_of_one():
    enc,task = vit(),MAE(patch=8, dim=16, depth=1)
    q,a = task.make(torch.randn(1,3,32,32))
    with torch.autocast('cpu', torch.bfloat16): pred = PretextModel(enc, task.head(enc))(*q)
    loss = task.loss_func(pred, *a)
    loss.backward()
    assert loss.isfinite() and loss.dtype==torch.float32

# In a Learner

@pytest.mark.parametrize('norm', [True,False])
def test_learnt_and_judged_by_the_same_draws(norm):
    learn = learner(MAE(patch=8, norm=norm, dim=16, depth=1))
    with quietly(learn):
        a,b = learn.validate()[0],learn.validate()[0]
        learn.fit(3, 1e-2)
        assert a==b and learn.validate()[0]<.97*a
        x,pred,y = learn.get_preds(with_input=True)
    assert x[0].shape==pred.shape==y[0].shape==(12,3,32,32) and y[1].shape==(12,1,32,32)

@pytest.mark.parametrize('norm', [True,False])
def test_pictures_show_the_right_answer_as_the_image(norm):
    task = MAE(patch=8, norm=norm)
    x = torch.rand(2,3,32,32)
    q,a = task.make(x)
    mean,std = patch_stats(x, 8) if norm else (0,1)
    assert torch.allclose(task.said(q, a, (x-mean)/std), x, atol=1e-5)
    said = task.said(q, a, torch.full_like(x, 7))
    assert torch.equal(torch.where(a[1], 0, said), q[0]) and (said!=x)[a[1].expand_as(x)].all()

def test_shown(synth):
    learn = pretext_learner(unlabeled_dls(synth, size=32, bs=8, num_workers=0), vit(), MAE(patch=8, dim=16, depth=1))
    with quietly(learn):
        learn.show_batch(max_n=2)
        assert len(plt.gcf().axes)==4
        learn.show_results(max_n=3)
        assert [plt.gcf().axes[i].get_ylabel() for i in (0,3,6)]==['input','target','prediction']
        said,_,pred = learn.predict(learn.dls.train_ds.items[0])
    assert said.shape==pred.shape==(3,32,32) and 0<=said.min() and said.max()<=1

def test_copies_and_words():
    task = MAE(patch=8, norm=False)
    assert repr(deepcopy(task))=='MAE(patch=8, norm=False)' and repr(get_task('mae'))=='MAE()'
    learn = learner()
    again = deepcopy(learn.model)
    learn.model.eval(), again.eval()
    q,_ = learn.pretext.task.make(torch.randn(2,3,32,32))
    assert torch.equal(learn.model(*q), again(*q))

def test_what_is_saved_is_timms_own(tmp_path):
    learn = learner()
    keys = list(learn.model[0].body.state_dict())
    with quietly(learn): learn.fit(1)
    fn = save_encoder(learn, tmp_path/'mae')
    net = timm.create_model('vit_tiny_patch16_224', num_classes=0, **small)
    assert list(net.state_dict())==keys==list(learn.model[0].body.state_dict())
    net.load_state_dict(load_file(fn))
    x = torch.randn(2,3,32,32)
    learn.model.eval()
    for o in (net.eval(), load_encoder(fn).eval()): assert torch.equal(o(x), learn.model[0](x))

# As a term

def labelled(enc, cb):
    return Learner(make_dls(size=32, n=16), nn.Sequential(enc, nn.Linear(enc.nf, 4)), loss_func=CrossEntropyLossFlat(), cbs=cb)

def test_beside_labels():
    res = []
    for w in (.5,0.):
        set_seed(0)
        learn = labelled(vit(), PretextTerm(MAE(patch=8, dim=16, depth=1), w))
        with quietly(learn): learn.fit(1, .01)
        res.append(ws(learn.model))
        if w: assert learn.recorder.metric_names[3]=='mae_loss' and np.isfinite(learn.recorder.values[-1]).all()
    assert not torch.allclose(*res)

def test_refused_before_the_first_batch():
    seen = []
    class Spy(Callback):
        order = -100
        def before_batch(self): seen.append(self.iter)
    learn = labelled(create_encoder(body()), [PretextTerm(MAE()), Spy()])
    with quietly(learn), pytest.raises(ValueError, match='tokens'): learn.fit(1)
    assert not seen
    with pytest.raises(ValueError, match='tokens'): pretext_learner(make_dls(), body(), MAE())
