"Pretext tasks: the tasks' sums against referees, what the callback does to a `Learner`, bad input"
import matplotlib
matplotlib.use('Agg')
import pytest
from functools import lru_cache
from fastai.vision.all import *
from fastai_contrastive.core import ContrastiveCallback
from fastai_contrastive.encoder import create_encoder, dls_stats
from fastai_contrastive.pretext.core import *
from fastai_contrastive.pretext.inpainting import *
from fastai_contrastive.pretext.rotation import *

close = test_close
for o in [o for o in globals() if o.startswith('test')]: del globals()[o] # pytest would collect fastcore's

tasks = [Rotation(), Rotation(all_four=True), Inpainting(grid=4)]

@lru_cache
def images(n, h, w):
    "Bright on top, each in its own colour, so that both tasks can be learnt"
    g = torch.Generator().manual_seed(0)
    return torch.linspace(1, 0, h)[None,None,:,None] * (.3 + .7*torch.rand(n, 3, 1, 1, generator=g)) + .05*torch.rand(n, 3, h, w, generator=g)

def image(i, n, h, w): return TensorImage(images(n, h, w)[i])
def parity(i): return i%2

def make_dls(n=48, h=32, w=32, bs=16, labelled=False):
    set_seed(1)
    tfms = [[partial(image, n=2*n, h=h, w=w)]] + ([[parity, Categorize()]] if labelled else [])
    dsets = Datasets(range_of(2*n), tfms, splits=[range(n), range(n,2*n)])
    norm = Normalize.from_stats(*imagenet_stats, cuda=False)
    return dsets.dataloaders(bs=bs, after_batch=[norm], device='cpu', num_workers=0, drop_last=False)

def tiny(): return nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2))

def make_learn(task, **kwargs):
    set_seed(3)
    dls = kwargs.pop('dls', None) or make_dls()
    return pretext_learner(dls, tiny(), task, **kwargs)

@pytest.fixture(autouse=True)
def tidy():
    yield
    plt.close('all')

def quietly(learn):
    return ContextManagers([learn.no_logging(), learn.no_bar()])

def ws(m): return torch.cat([p.detach().flatten() for p in m.parameters()])

# The tasks

def test_rotation_turns_each_image_by_its_label():
    set_seed(0)
    x = torch.randn(64,3,9,9)
    xb,yb = Rotation().make(x)
    assert yb.dtype==torch.int64 and set(yb.tolist())=={0,1,2,3}
    for o,clean,k in zip(xb, x, yb.tolist()):
        assert torch.equal(o, torch.rot90(clean, k, (1,2)))
        assert torch.equal(torch.rot90(o, -k, (1,2)), clean)

def test_rotation_all_four_shows_every_turn_of_every_image():
    x = torch.randn(5,3,8,8)
    xb,yb = Rotation(all_four=True).make(x)
    assert xb.shape==(20,3,8,8)
    for i in range(5):
        assert sorted(yb[4*i:4*i+4].tolist())==[0,1,2,3]
        for o,k in zip(xb[4*i:4*i+4], yb[4*i:4*i+4].tolist()): assert torch.equal(o, torch.rot90(x[i], k, (1,2)))

def test_rotation_wants_squares():
    with pytest.raises(ValueError, match='32x48.*Resize'): Rotation().make(torch.randn(2,3,32,48))
    with pytest.raises(ValueError, match='48x32'): make_learn(Rotation(), dls=make_dls(h=48)).validate()

@pytest.mark.parametrize('area,grid,n', [(.4,8,26), (.25,4,4), (.001,4,1), (.99,2,4)])
def test_cells_are_an_exact_fraction_drawn_per_image(area, grid, n):
    m = random_cells(32, grid, area)
    assert m.shape==(32,1,grid,grid) and (m.sum((1,2,3))==n).all()
    if 1<n<grid**2: assert len({tuple(o.flatten().tolist()) for o in m})>16

def test_every_cell_is_removed_equally_often():
    set_seed(0)
    p = random_cells(4000, 4, .25).float().mean(0)
    assert (p-.25).abs().max()<.04

@pytest.mark.parametrize('size', [(64,64), (32,48), (50,35)])
def test_inpainting_removes_the_mask_and_nothing_else(size):
    x = torch.randn(4,3,*size)
    xb,(clean,m) = Inpainting(area=.5).make(x)
    assert m.shape==(4,1,*size) and m.dtype==torch.bool
    mm = m.expand_as(x)
    assert torch.equal(clean, x) and (xb[mm]==0).all() and torch.equal(xb[~mm], x[~mm])
    assert abs(m.float().mean()-.5)<.1

@pytest.mark.parametrize('kind', ['l1','l2'])
def test_masked_loss_uses_only_removed_pixels(kind):
    set_seed(0)
    x,pred = torch.randn(4,3,16,16),torch.randn(4,3,16,16, requires_grad=True)
    m = F.interpolate(random_cells(4, 4, .3).float(), size=(16,16)).bool()
    mm,d = m.expand_as(x),(pred-x).detach()
    loss = MaskedLoss(kind)(pred, x, m)
    close(loss.item(), (d[mm].abs() if kind=='l1' else d[mm]**2).mean().item(), eps=1e-5)
    loss.backward()
    assert (pred.grad[~mm]==0).all() and (pred.grad[mm]!=0).all()
    each = MaskedLoss(kind, reduction='none')(pred, x, m)
    assert each.shape==(4,)
    close(each.mean(), loss, eps=1e-5)

def test_masked_loss_rest_is_the_weight_of_the_others():
    x,m = torch.zeros(1,3,4,4),torch.zeros(1,1,4,4).bool()
    m[...,:2] = True
    pred = torch.where(m, 1., 3.).expand(1,3,4,4)
    close(MaskedLoss(rest=.2)(pred, x, m).item(), (8*1+.2*8*3)/(8+.2*8), eps=1e-5)
    close(masked_mae(pred, x, m).item(), 1.)

@pytest.mark.parametrize('kw,match', [(dict(area=1.), 'between 0 and 1.*1'), (dict(area=0), 'between'),
    (dict(grid=1), 'grid.*2 or more'), (dict(loss='l3'), "'l3'")])
def test_inpainting_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): Inpainting(**kw)

@pytest.mark.parametrize('arch,size', [('xresnet18',(64,64)), ('xresnet18',(80,112)), (models.resnet18,(64,64)), ('vit_tiny_patch16_224',(64,64)),
    ('mobilenetv3_small_050',(64,64)), (tiny(),(30,34))])
def test_inpainting_gives_images_of_the_inputs_size(arch, size):
    if isinstance(arch, str) and '_' in arch: pytest.importorskip('timm')
    enc = create_encoder(arch)
    model = PretextModel(enc, Inpainting().head(enc)).eval()
    assert model(torch.randn(2,3,*size)).shape==(2,3,*size)

def test_decoder_is_light():
    enc = create_encoder('xresnet18')
    assert total_params(Inpainting().head(enc))[0] < .05*total_params(enc)[0]

# The learner

@pytest.mark.parametrize('task', [Rotation(), Inpainting(grid=4)], ids=['rotation','inpainting'])
def test_tasks_are_learnt(task):
    learn = make_learn(task)
    with quietly(learn):
        before = learn.validate()
        learn.fit_one_cycle(12, 2e-2)
        after = learn.validate()
    if task.name=='rotation': assert after[1]>.7 and before[1]<.5
    else: assert after[0]<.6*before[0] and after[1]==pytest.approx(after[0], rel=1e-4)

@pytest.mark.parametrize('task', tasks, ids=['rotation','all_four','inpainting'])
def test_validation_is_deterministic_and_leaves_the_random_stream(task):
    learn = make_learn(task)
    with quietly(learn):
        torch.manual_seed(7)
        for _ in learn.dls.valid: pass # the loader draws a seed
        state = torch.get_rng_state()
        torch.manual_seed(7)
        a = learn.validate()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        assert learn.validate()==a
        x = [learn.get_preds(dl=learn.dls.valid, with_input=True)[0] for _ in range(2)]
    assert torch.equal(*x)
    assert not all(torch.equal(x[0][:4], x[0][i:i+4]) for i in range(4, 40, 4))

def test_validation_batches_differ_and_training_draws_afresh():
    seen = []
    class Spy(Rotation):
        def make(self, x):
            xb,yb = super().make(x)
            seen.append(yb.tolist())
            return xb,yb
    learn = make_learn(Spy())
    with quietly(learn): learn.fit(2)
    train1,valid1,train2,valid2 = seen[:3],seen[3:6],seen[6:9],seen[9:12]
    assert valid1==valid2 and train1!=train2 and valid1[0]!=valid1[1]

@pytest.mark.parametrize('task', tasks, ids=['rotation','all_four','inpainting'])
def test_labels_are_ignored(task):
    res = []
    for labelled in (False,True):
        learn = make_learn(task, dls=make_dls(labelled=labelled))
        set_seed(5)
        with quietly(learn): learn.fit(1)
        res.append(ws(learn.model))
    assert torch.equal(*res)

@pytest.mark.parametrize('task', tasks, ids=['rotation','all_four','inpainting'])
def test_fastai_goes_on_working(task, tmp_path):
    learn = make_learn(task, path=tmp_path)
    n = 48*(4 if getattr(task, 'all_four', False) else 1)
    with quietly(learn):
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            w0 = ws(learn.model)
            learn.lr_find(show_plot=False, num_it=4)
            assert torch.equal(w0, ws(learn.model))
            learn.fit(1, cbs=[GradientAccumulation(24), ChannelsLast()])
            w = ws(learn.model)
            learn.fit_one_cycle(1, slice(1e-3))
        assert not torch.equal(w0, w)
        assert not torch.equal(w, ws(learn.model))
        pred,targ,loss = learn.get_preds(with_loss=True)
        assert len(pred)==n and loss.shape==(n,)
        assert loss.mean().item()==pytest.approx(learn.validate()[0], rel=1e-4)
        if task.name=='rotation': close(pred.sum(1), torch.ones(n), eps=1e-4)
        else: assert pred.shape==targ[0].shape==(48,3,32,32) and targ[1].shape==(48,1,32,32)
        assert len(learn.get_preds(ds_idx=0)[0])==n
        learn.export('l.pkl')
    again = load_learner(tmp_path/'l.pkl')
    assert torch.equal(ws(again.model), ws(learn.model))
    again.dls = learn.dls
    with quietly(again): assert again.validate()==learn.validate()

def test_get_preds_keeps_the_order_of_the_data_set():
    learn = make_learn(Rotation(all_four=True))
    with quietly(learn): x,_,y = learn.get_preds(ds_idx=0, with_input=True)
    stats = dls_stats(learn.dls)
    clean = torch.stack([image(i, 96, 32, 32).as_subclass(Tensor) for i in range(48)])
    assert y.tolist()==[0,1,2,3]*48
    close(to_pixels(x[::4], stats), clean.clamp(0,1), eps=1e-4)

def test_made_after_the_term_took_its_images_and_before_mixup():
    seen = {}
    class Before(Callback):
        order = ContrastiveCallback.order
        def before_batch(self): seen.setdefault('before', self.x.clone())
    class After(Callback):
        order = MixUp.order-1
        def before_batch(self): seen.setdefault('after', (self.x.clone(), self.y.clone()))
    class Last(Callback):
        order = MixUp.order+1
        def before_batch(self): seen.setdefault('last', self.x.clone())
    learn = make_learn(Rotation(), cbs=[Before(), After(), MixUp(), Last()])
    with quietly(learn): learn.fit(1)
    x,y = seen['after']
    assert y.any() and torch.equal(x, rotate(seen['before'].as_subclass(Tensor), y)) and not torch.equal(x, seen['last'])
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)

@pytest.mark.parametrize('task', tasks, ids=['rotation','all_four','inpainting'])
def test_pictures(task):
    learn = make_learn(task)
    with quietly(learn):
        learn.show_batch(max_n=3)
        a = plt.gcf()
        learn.show_results(max_n=4)
    b = plt.gcf()
    assert a is not b
    rows = 1 if task.name=='rotation' else 3
    assert len(b.axes)==4*rows and len(a.axes)==3*(1 if rows==1 else 2)
    if rows==1:
        for ax in b.axes:
            t,p = ax.get_title().split('/')
            assert ax.title.get_color()==('green' if t==p else 'red')
    else: assert [b.axes[i].get_ylabel() for i in (0,4,8)]==['input','target','prediction']

def test_pictures_show_the_images_denormalised():
    learn = make_learn(Inpainting(grid=4))
    with quietly(learn): learn.show_results(max_n=2, shuffle=False)
    shown,target = [torch.tensor(np.asarray(plt.gcf().axes[i].images[0].get_array())).permute(2,0,1) for i in (0,2)]
    clean = image(48, 96, 32, 32).as_subclass(Tensor)
    close(target, clean.clamp(0,1), eps=1e-4)
    hole = (shown-target).abs().sum(0)>1e-3
    assert hole.any() and not hole.all()
    close(shown[:,hole].mean(1), tensor(imagenet_stats[0]), eps=1e-2)

def test_model_is_encoder_and_head(tmp_path):
    learn = make_learn(Inpainting(), path=tmp_path)
    assert {k.split('.')[0] for k in learn.model.state_dict()}=={'0','1'}
    fn = learn.save('w')
    plain = torch.load(fn, weights_only=True)
    nn.Sequential(learn.model[0], learn.model[1]).load_state_dict(plain if 'model' not in plain else plain['model'])
    w = ws(learn.model)
    with quietly(learn): learn.fit(1)
    assert not torch.equal(w, ws(learn.model))
    learn.load('w', with_opt=False)
    assert torch.equal(w, ws(learn.model))

def test_an_encoder_is_trained_further():
    first = make_learn(Rotation())
    second = pretext_learner(make_dls(), first.model[0], 'inpainting')
    assert second.model[0] is first.model[0] and isinstance(second.pretext.task, Inpainting)

def test_metrics_and_callbacks_can_be_given():
    learn = make_learn(Rotation(), metrics=[error_rate], cbs=TerminateOnNaNCallback())
    with quietly(learn): assert len(learn.validate())==2
    assert [m.name for m in learn.metrics]==['error_rate'] and len(learn._grab_cbs(TerminateOnNaNCallback))==1

# Tasks of one's own, and mistakes

def test_own_task_registers_itself_and_may_use_plain_functions():
    class MeanColourTest(PretextTask):
        loss_func = F.mse_loss
        def make(self, x): return x.mean(1, keepdim=True).expand_as(x), x.mean((2,3))
        def head(self, encoder): return nn.Linear(encoder.nf, 3)
    assert PretextTask.registry['mean_colour_test'] is MeanColourTest
    learn = make_learn('mean_colour_test')
    with quietly(learn):
        a = learn.validate()[0]
        learn.fit(3, 1e-2)
        assert learn.validate()[0]<a
        learn.show_results(max_n=2)

def test_own_task_may_hand_more_to_the_head():
    class Head(Module):
        wants = 'maps'
        def __init__(self, nf): self.lin = nn.Linear(nf, 2)
        def forward(self, f, size, extra): 
            assert f.ndim==4 and tuple(size)==(32,32)
            return self.lin(f.mean((2,3)))+extra
    class MoreTest(PretextTask):
        def loss_func(self, pred, y): return F.cross_entropy(pred, y)
        def make(self, x): return (x,torch.zeros(len(x), 2)),torch.zeros(len(x), dtype=torch.long)
        def head(self, encoder): return Head(encoder.nf)
    learn = make_learn(MoreTest())
    with quietly(learn): learn.fit(1)

@pytest.mark.parametrize('task,err,match', [(Rotation, TypeError, r'pass Rotation\(\)'),
    ('rotaton', ValueError, "unknown pretext task 'rotaton'.*'rotation'"),
    ('Inpaintng', ValueError, "'inpainting'"), (None, TypeError, 'NoneType'), (3, TypeError, 'int 3'), (nn.Linear, TypeError, 'type')])
def test_what_is_no_task(task, err, match):
    with pytest.raises(err, match=match): pretext_learner(make_dls(), tiny(), task)
    with pytest.raises(err, match=match): PretextCallback(task)

def test_unknown_arch_offers_the_nearest():
    with pytest.raises(ValueError, match='xresnet18'): pretext_learner(make_dls(), 'xresent18', Rotation())

def test_half_a_task_says_what_is_missing():
    class HalfTest(PretextTask): pass
    with pytest.raises(NotImplementedError, match='HalfTest needs head'): make_learn(HalfTest())
    with pytest.raises(NotImplementedError, match='HalfTest needs make'): HalfTest().make(torch.randn(1,3,4,4))
    PretextTask.registry.pop('half_test')
