"SimMIM: empty holes against convolutions written with a mask, what must not be seen, what is left of a pass, what is refused"
import pytest
from copy import deepcopy
from utils import *
from fastai_contrastive.data import unlabeled_dls
from fastai_contrastive.encoder import load_encoder, save_encoder
from fastai_contrastive.masks import *
from fastai_contrastive.pretext.simmim import *

pytestmark = pytest.mark.usefixtures('strict')
small = dict(dynamic_img_size=True, patch_size=8, depth=2, embed_dim=24, num_heads=2)
def vit(n_in=3, **kwargs): return create_encoder('vit_tiny_patch16_224', n_in, **{**small, **kwargs})
def swin(): return create_encoder('swin_tiny_patch4_window7_224', img_size=32, window_size=4, embed_dim=12, depths=(1,1), num_heads=(1,2))
def conv(n_in=3): return create_encoder(nn.Sequential(ConvLayer(n_in, 8, stride=2), nn.MaxPool2d(3, 2, 1), ConvLayer(8, 12, stride=2)), n_in)
def asked(task, x, enc):
    q,a = task.make(x)
    return PretextModel(enc, task.head(enc)),q,a
def hidden(bs, h, w, side, area=.5): return random_squares(torch.zeros(bs, 1, h, w), side, area)
def no_hooks(m): return not any(o._forward_hooks or o._forward_pre_hooks for o in m.modules())
def stats_of_bns(m): return torch.cat([torch.zeros(1), *[b.float().flatten() for b in m.buffers()]])

# Holes that stay empty

def by_hand(m, x, gone):
    "Convolution, batch norm, ReLU, pooling, with the mask written out; `gone(size)`: hidden places"
    for o in m:
        if isinstance(o, nn.BatchNorm2d):
            v = torch.cat([x[i,:,~g[0]] for i,g in enumerate(gone(x.shape[-2:]))], 1) # (c, visible places)
            mean,var = v.mean(1),v.var(1, correction=0)
            x = (x-mean[:,None,None])/(var[:,None,None]+o.eps).sqrt()*o.weight[:,None,None] + o.bias[:,None,None]
            o.running_mean = .9*o.running_mean+.1*mean
            o.running_var = .9*o.running_var+.1*v.var(1)
        else: x = o(x)
        x = torch.where(gone(x.shape[-2:]), 0, x)
    return x

def plain():
    m = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    for o in m:
        if isinstance(o, nn.BatchNorm2d): o.weight.data.uniform_(.5, 2); o.bias.data.uniform_(-1, 1)
    return m

def test_empty_holes_by_hand():
    m,x,h = plain(),torch.randn(4,3,32,24),hidden(4, 32, 24, 8)
    ref = deepcopy(m)
    def gone(size):
        k = 32//size[0]
        return ~F.max_pool2d((~h).float(), k).bool() if k>1 else h
    want = by_hand(ref, x.masked_fill(h, 0), gone)
    with kept_empty(m, h): got = m(x)
    got = torch.where(gone(got.shape[-2:]), 0, got)
    assert torch.allclose(got, want, atol=1e-5)
    for a,b in zip((m[1],m[5]), (ref[1],ref[5])):
        assert torch.allclose(a.running_mean, b.running_mean, atol=1e-5) and torch.allclose(a.running_var, b.running_var, atol=1e-5)
    got.pow(2).sum().backward()
    grads = torch.autograd.grad(want.pow(2).sum(), list(ref.parameters()))
    for p,g in zip(m.parameters(), grads): assert torch.allclose(p.grad, g, atol=1e-3, rtol=1e-3)

@pytest.mark.parametrize('training', [True,False])
def test_with_nothing_hidden_it_is_the_ordinary_pass(training):
    m,x = plain().train(training),torch.randn(4,3,32,32)
    other = deepcopy(m)
    with kept_empty(m, torch.zeros(4,1,32,32).bool()): got = m(x)
    assert torch.allclose(got, other(x), atol=1e-5) and torch.allclose(stats_of_bns(m), stats_of_bns(other), atol=1e-5)

archs = dict(xresnet=lambda: create_encoder('xresnet_narrow', nf=32, blocks=1), mobilenet=lambda: create_encoder('mobilenetv3_small_050'),
    convnext=lambda: create_encoder('convnext_atto', depths=(1,1,1,1), dims=(8,8,16,16)),
    resnet=lambda: create_encoder('timm:resnet18', channels=(8,8,16,16)))

@pytest.mark.parametrize('arch', archs)
@pytest.mark.parametrize('patch', [16,32])
def test_what_is_hidden_is_never_seen(arch, patch):
    "Not by any layer, not by the batch norms: other pixels in the holes change nothing; and holes are holes in the last map"
    enc = archs[arch]()
    head = SimMIM(patch=patch, sparse=True).head(enc)
    x,h = torch.randn(3,3,96,64),hidden(3, 96, 64, patch)
    other = deepcopy(enc)
    a,b = head(enc, x, h),head(other, x.masked_fill(h, 99), h)
    assert a.shape==x.shape and torch.equal(a, b) and torch.equal(stats_of_bns(enc), stats_of_bns(other))
    assert no_hooks(enc)
    a.pow(2).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in enc.parameters()) and head.token.grad.isfinite().all()

def test_without_it_the_holes_are_seen():
    enc = archs['xresnet']()
    head,x,h = SimMIM().head(enc),torch.randn(3,3,64,64),hidden(3, 64, 64, 16)
    assert not torch.equal(head(enc, x, h), head(enc, x.masked_fill(h, 99), h)) and head.token is None

def test_the_empty_places_of_the_last_map_are_the_learnt_vector():
    enc = conv()
    head,x,h = SimMIM(patch=8, sparse=True).head(enc),torch.randn(3,3,32,32),hidden(3, 32, 32, 8)
    f = head._maps(enc, x, h)
    g = h[:,0,::8,::8]
    assert torch.equal(f.permute(0,2,3,1)[g], head.token.expand(int(g.sum()), -1))
    assert not (f.permute(0,2,3,1)[~g]==head.token).all(1).any()

def test_hooks_are_gone_whatever_happens():
    class Fails(nn.Module):
        def forward(self, x): raise RuntimeError('no')
    m = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Fails())
    with pytest.raises(RuntimeError, match='no'), kept_empty(m, hidden(2, 16, 16, 4)): m(torch.randn(2,3,16,16))
    assert no_hooks(m) and m[0](torch.ones(2,3,16,16)).all()

# The task

@pytest.mark.parametrize('make,kw', [(vit,{}), (swin,{}), (conv,{}), (conv,dict(sparse=True))], ids=['vit','swin','conv','sparse'])
def test_every_weight_learns_and_loss_is_that_of_hidden_pixels(make, kw):
    enc = make()
    x = torch.randn(4,3,32,32)
    model,q,(clean,m) = asked(SimMIM(patch=8, **kw), x, enc)
    pred = model(*q)
    loss = SimMIM().loss_func(pred, clean, m)
    mm = m.expand_as(x)
    close(loss, (pred-x)[mm].abs().mean(), eps=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p is not getattr(model[0].body, 'cls_token', None))
    assert m.float().mean()==10/16 and torch.equal(q[0][~mm], x[~mm]) and (q[0][mm]==0).all()

@pytest.mark.parametrize('make', [vit,swin])
def test_a_transformer_does_not_see_what_is_hidden(make):
    enc = make().eval()
    head = SimMIM(patch=8).head(enc)
    x,h = torch.randn(2,3,32,32),hidden(2, 32, 32, 8)
    assert torch.equal(head(enc, x, h), head(enc, x.masked_fill(h, 99), h))
    was = head(enc, x, h)
    head.token.data += 1
    assert not torch.allclose(was, head(enc, x, h)) and no_hooks(enc)

def test_pixels_lie_under_their_places():
    "The linear layer of one place makes the square under it"
    enc = conv().eval()
    head = SimMIM(patch=8).head(enc)
    f = torch.zeros(1,12,4,4)
    f[0,:,1,2] = 1
    d = (head.out(f)-head.out(f*0)).abs().sum(1)[0]
    assert d[8:16,16:24].all() and d.sum().item()==pytest.approx(d[8:16,16:24].sum().item())

@pytest.mark.parametrize('kw,match', [(dict(area=0), 'between 0 and 1'), (dict(patch=-1), 'whole number')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): SimMIM(**kw)

def test_what_does_not_go_together():
    with pytest.raises(ValueError, match=r'hides squares of 12.*8x8.*patch=8'): SimMIM(patch=12).head(vit())
    with pytest.raises(ValueError, match='leave out sparse'): SimMIM(sparse=True).head(vit())
    with pytest.raises(ValueError, match='leave out sparse'): pretext_learner(make_dls(), swin(), SimMIM(sparse=True))
    with pytest.raises(ValueError, match=r'50x40.*48x32 or 64x48'): SimMIM().make(torch.rand(2,3,50,40))
    with pytest.raises(ValueError, match='all of them'): SimMIM(area=.99).make(torch.rand(2,3,32,32))

@pytest.mark.parametrize('size', [(24,40), (56,32)])
@pytest.mark.parametrize('kw', [{}, dict(sparse=True)], ids=['filled','sparse'])
def test_sizes_that_the_stride_does_not_divide(size, kw):
    enc = archs['xresnet']()
    model,q,a = asked(SimMIM(patch=8, **kw), torch.randn(2,3,*size), enc)
    pred = model(*q)
    assert pred.shape==(2,3,*size) and SimMIM().loss_func(pred, *a).isfinite()

@pytest.mark.parametrize('c', [1,5])
@pytest.mark.parametrize('make,kw', [(vit,{}), (conv,{}), (conv,dict(sparse=True))], ids=['vit','conv','sparse'])
def test_channels_half_precision_and_a_batch_of_one(c, make, kw):
    model,q,a = asked(SimMIM(patch=8, **kw), torch.randn(1,c,32,32), make(c))
    with torch.autocast('cpu', torch.bfloat16): pred = model(*q)
    loss = SimMIM().loss_func(pred, *a)
    loss.backward()
    assert pred.shape==(1,c,32,32) and loss.isfinite() and loss.dtype==torch.float32

# In a Learner

def learner(enc=None, **kwargs): return pretext_learner(make_dls(size=32, n=16), enc or conv(), SimMIM(patch=8, **kwargs))

@pytest.mark.parametrize('enc,kw', [(vit,{}), (conv,{}), (conv,dict(sparse=True))], ids=['vit','conv','sparse'])
def test_learnt_judged_by_the_same_draws_and_saved_as_it_was(enc, kw, tmp_path):
    learn = learner(enc(), **kw)
    keys = list(learn.model[0].state_dict())
    with quietly(learn):
        a,b = learn.validate()[0],learn.validate()[0]
        learn.fit(4, 1e-2)
        assert a==b and learn.validate()[0]<.97*a
    assert list(learn.model[0].state_dict())==keys and no_hooks(learn.model)
    fn = save_encoder(learn, tmp_path/'e')
    enc = load_encoder(fn, enc().body if 'vit' not in learn.model[0].arch else None).eval()
    x = torch.randn(2,3,32,32)
    learn.model.eval()
    assert torch.equal(enc(x), learn.model[0](x))
    q,_ = learn.pretext.task.make(x)
    assert torch.equal(deepcopy(learn.model)(*q), learn.model(*q))

@pytest.mark.parametrize('sparse', [False,True])
def test_shown(synth, sparse):
    learn = pretext_learner(unlabeled_dls(synth, size=32, bs=8, num_workers=0), conv(), SimMIM(patch=8, sparse=sparse))
    with quietly(learn):
        learn.show_batch(max_n=2)
        assert len(plt.gcf().axes)==4
        learn.show_results(max_n=3)
        assert [plt.gcf().axes[i].get_ylabel() for i in (0,3,6)]==['input','target','prediction']
        said,_,pred = learn.predict(learn.dls.train_ds.items[0])
    assert said.shape==pred.shape==(3,32,32)

def test_said_is_what_was_seen_and_the_holes_as_filled():
    task,x = SimMIM(patch=8),torch.rand(2,3,32,32)
    q,a = task.make(x)
    said,mm = task.said(q, a, x+5),a[1].expand_as(x)
    assert torch.equal(said[~mm], x[~mm]) and torch.equal(said[mm], (x+5)[mm])

def with_term(w, lr, **kwargs):
    set_seed(0)
    enc = conv()
    learn = Learner(make_dls(size=32, n=16), nn.Sequential(enc, nn.Linear(enc.nf, 4)), loss_func=CrossEntropyLossFlat(),
        cbs=PretextTerm(SimMIM(patch=8, sparse=True), w, **kwargs), opt_func=SGD)
    with quietly(learn): learn.fit(1, lr)
    assert learn.recorder.metric_names[3]=='sim_mim_loss' and no_hooks(learn.model)
    return ws(learn.model),stats_of_bns(learn.model),learn.recorder.values[-1]

def test_beside_labels_with_empty_holes():
    "Its gradient reaches the encoder, and it leaves the running statistics alone unless asked"
    off,on = with_term(0., .1),with_term(.5, .1)
    assert not torch.allclose(off[0], on[0]) and np.isfinite(on[2]).all()
    off,on,moved = with_term(0., 0.),with_term(.5, 0.),with_term(.5, 0., update_bn=True)
    assert torch.equal(off[1], on[1]) and not torch.allclose(off[1], moved[1])
