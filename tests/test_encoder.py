"Encoders of every origin, and their files"
import forked, json, pickle, pytest
from copy import copy
from utils import *
import torchvision.models as tv
from torchvision.models import resnet18, mobilenet_v3_small
from fastai_contrastive import encoder
from fastai_contrastive.encoder import *
from fastai_contrastive.views import channel_split
import timm

x3,x1 = torch.randn(2,3,32,32),torch.randn(2,1,32,32)
def tiny_xr(**kwargs): return create_encoder('xresnet18', widen=.125, **kwargs)

# Making one

@pytest.mark.parametrize('arch, kwargs, name, nf', [
    (xresnet18, dict(widen=.25), 'xresnet18', 128),
    ('xresnet18', dict(widen=.25), 'xresnet18', 128),
    (resnet18, {}, 'resnet18', 512),
    (mobilenet_v3_small, {}, 'mobilenet_v3_small', 576),
    ('mobilenet_v3_small', {}, 'mobilenet_v3_small', 576),
    ('convnext_atto', {}, 'convnext_atto', 320),
    (body, {}, 'body', 12),
])
def test_pooled_features_and_maps(arch, kwargs, name, nf):
    enc = create_encoder(arch, **kwargs).eval()
    assert (enc.nf, enc.arch, enc.kwargs, enc.n_in)==(nf, name, kwargs, 3)
    f,m = enc(x3),enc.maps(x3)
    assert all(torch.equal(a, b) for a,b in zip(enc.both(x3), (f,m)))
    assert f.shape==(2,nf) and m.ndim==4 and m.shape[:2]==(2,nf) and m.shape[2]==m.shape[3]
    assert type(enc(TensorImage(x3))) is Tensor

def test_an_xresnet_is_fastais_own_body():
    set_seed(0); enc = tiny_xr()
    set_seed(0); ref = create_body(xresnet18(widen=.125), cut=-4)
    enc.eval(); ref.eval()
    assert torch.equal(enc.maps(x3), ref(x3)) and torch.allclose(enc(x3), ref(x3).mean((2,3)))

def test_any_module_giving_maps_or_features():
    for m,has_maps in ((plain_body(), True), (nn.Sequential(plain_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), False)):
        enc = create_encoder(m)
        assert enc.nf==12 and torch.allclose(enc(x3), plain(m, x3))
        if has_maps: assert torch.equal(enc.maps(x3), m(x3))
        else:
            with pytest.raises(ValueError, match='pooled features only'): enc.maps(x3)

def plain(m, x):
    f = m(x)
    return f.mean((2,3)) if f.ndim==4 else f

def test_vit_maps_lay_the_tokens_on_their_grid():
    enc = create_encoder('vit_tiny_patch16_224', depth=1).eval()
    x = torch.randn(2,3,32,64)
    tokens = enc.body.forward_features(x)[:,enc.body.num_prefix_tokens:]
    m = enc.maps(x)
    assert all(torch.equal(a, b) for a,b in zip(enc.both(x), (enc(x),m)))
    assert enc.nf==192 and m.shape==(2,192,2,4) and torch.equal(m[:,:,1,2], tokens[:,6])

def test_a_vit_of_fixed_size():
    enc = create_encoder('vit_tiny_patch16_224', depth=1, img_size=48)
    assert enc.nf==192 and enc.maps(torch.randn(1,3,48,48)).shape==(1,192,3,3)

def test_channels_last_maps_are_turned():
    enc = create_encoder('swin_tiny_patch4_window7_224', depths=(1,1), num_heads=(1,1), embed_dim=16).eval()
    x = torch.randn(1,3,224,224)
    assert enc.maps(x).shape==(1,32,28,28) and torch.allclose(enc.maps(x).mean((2,3)), enc(x), atol=1e-5)

@pytest.mark.parametrize('arch', [xresnet18, resnet18, 'convnext_atto', 'resnet10t'])
def test_one_channel(arch):
    enc = create_encoder(arch, n_in=1)
    assert enc.eval()(x1).shape==(2,enc.nf) and enc.n_in==1

def test_an_encoder_is_taken_as_it_is():
    enc = tiny_xr()
    assert create_encoder(enc) is enc

def test_measuring_leaves_no_trace():
    m = nn.Sequential(body(), nn.Dropout(.5))
    m[0][0][1].eval()
    was,modes,rng = ws(m),[o.training for o in m.modules()],torch.get_rng_state()
    assert Encoder(m).nf==12
    assert torch.equal(was, ws(m)) and modes==[o.training for o in m.modules()] and torch.equal(rng, torch.get_rng_state())

@pytest.mark.parametrize('arch, e, msg', [
    ('xresnet81',       ValueError, "unknown arch 'xresnet81'.*'xresnet18'"),
    ('resnest',         ValueError, "Did you mean .*resne"),
    ('qqqqqqqq',        ValueError, 'There are: '),
    (XResNet,           TypeError,  'XResNet is a class: pass an instance'),
    (18,                TypeError,  'must be a function, a name or a module: got int 18'),
    (nn.Linear(3,3),    ValueError, 'Linear failed on a blank image of 3 channels'),
    (nn.Conv2d(1,4,3),  ValueError, 'failed on a blank image of 3 channels'),
    (nn.Flatten(0),     ValueError, r'returns features of shape'),
])
def test_bad_arch_is_named(arch, e, msg):
    with pytest.raises(e, match=f'(?s){msg}'): create_encoder(arch)

def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ValueError, match=r'xresnet18.*fastai_contrastive\[timm\]'): create_encoder('xresnet1')
    assert 'xresnet18' in arch_names() and 'vit_tiny_patch16_224' not in arch_names()

# Finding one

class Net(Module):
    def __init__(self): self.trunk,self.fc = plain_body(),nn.Linear(12,4)
    def forward(self, x): return self.fc(self.trunk(x).mean((2,3)))

def test_encoder_in_a_model():
    enc,net = tiny_xr(),Net()
    m = nn.Sequential(enc, nn.Linear(64,2))
    for wrap in (noop, nn.DataParallel, partial(torch.compile, backend='eager'), lambda m: torch.compile(nn.DataParallel(m), backend='eager')):
        assert get_encoder(wrap(m)) is enc
    assert get_encoder(enc) is enc and get_encoder(net, lambda m: m.trunk) is net.trunk and get_encoder(net, net.trunk) is net.trunk

def c3(ni, nf, ks=3): return nn.Conv2d(ni, nf, ks, padding=ks//2)
def pool_lin(nf): return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, 3)]
def flat(): return nn.Sequential(c3(3,8), nn.ReLU(), c3(8,12), nn.ReLU(), *pool_lin(12))
def headless_resnet():
    m = tv.resnet18()
    m.fc = nn.Identity()
    return m

def tiny_vit(**kwargs): return tv.VisionTransformer(64, 16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32, **kwargs)
def tiny_vgg():
    m = tv.VGG(tv.vgg.make_layers([8,'M',16,'M']), init_weights=False)
    m.classifier = nn.Linear(16*49,3)
    return m
def tiny_swin(): return tv.SwinTransformer([4,4], 16, [1,1], [2,2], [4,4], num_classes=3)
def tiny_maxvit(): return tv.MaxVit(input_size=(64,64), stem_channels=16, partition_size=2, block_channels=[16], block_layers=[1], head_dim=16,
                                    stochastic_depth_prob=.1, num_classes=3)
def tiny_convnext():
    from torchvision.models.convnext import CNBlockConfig
    return tv.ConvNeXt([CNBlockConfig(8,16,1), CNBlockConfig(16,None,1)])
def timm_model(name, **kwargs): return timm.create_model(name, num_classes=3, **kwargs)

# The model, and which of its parameters are the head's (regular expression)
whole_models = dict(
    xresnet   = (lambda: xresnet18(n_out=3, widen=.25), r'^11\.'),
    resnet    = (lambda: tv.resnet18(num_classes=3), r'^fc\.'),
    no_fc     = (headless_resnet, r'^$'),
    vgg       = (tiny_vgg, r'^classifier\.'),
    densenet  = (lambda: tv.DenseNet(8, (1,1), 8), r'^classifier\.'),
    mobilenet2= (lambda: tv.mobilenet_v2(width_mult=.25), r'^classifier\.'),
    mobilenet3= (lambda: tv.mobilenet_v3_small(width_mult=.25), r'^classifier\.'),
    effnet    = (lambda: tv.efficientnet_b0(), r'^classifier\.'),
    convnext  = (tiny_convnext, r'^classifier\.'),
    swin      = (tiny_swin, r'^head\.'),
    shufflenet= (lambda: tv.shufflenet_v2_x0_5(), r'^fc\.'),
    regnet    = (lambda: tv.regnet_y_400mf(), r'^fc\.'),
    squeezenet= (lambda: tv.squeezenet1_1(), r'^classifier\.'),
    mnasnet   = (lambda: tv.mnasnet0_5(), r'^classifier\.'),
    maxvit    = (tiny_maxvit, r'^classifier\.'),
    googlenet = (lambda: tv.googlenet(init_weights=False), r'^(aux\d|fc)\.'),
    tv_vit    = (tiny_vit, r'^heads\.'),
    timm_resnet=(lambda: timm_model('resnet10t'), r'^fc\.'),
    timm_vit  = (lambda: timm_model('vit_tiny_patch16_224', depth=1, img_size=64), r'^head\.'),
    timm_deit = (lambda: timm_model('deit_tiny_distilled_patch16_224', depth=1, img_size=64), r'^head(_dist)?\.'),
    timm_conv = (lambda: timm_model('convnext_atto'), r'^head\.fc\.'),
    unet      = (lambda: create_unet_model(resnet18, 3, (64,64), pretrained=False), r'^layers\.(?!0\.)'),
    body_head = (lambda: create_vision_model(xresnet18, 3, pretrained=False), r'^1\.'),
    conv_head = (lambda: create_vision_model(resnet18, 3, pretrained=False, custom_head=nn.Sequential(c3(512,8), nn.ReLU(), *pool_lin(8))), r'^1\.'),
    timm_body = (lambda: create_timm_model('resnet10t', 3, pretrained=False)[0], r'^1\.'),
    flat      = (flat, r'^6\.'),
    maxpools  = (lambda: nn.Sequential(c3(3,8), nn.ReLU(), nn.MaxPool2d(2), c3(8,12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12*16*16,3)), r'^7\.'),
    no_pool   = (lambda: nn.Sequential(c3(3,8), nn.ReLU(), nn.Conv2d(8,12,8,8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12*8*8,3)), r'^6\.'),
    blocks    = (lambda: nn.Sequential(ConvLayer(3,8), ConvLayer(8,12), *pool_lin(12)), r'^4\.'),
    two_parts = (lambda: nn.Sequential(nn.Sequential(c3(3,8), nn.ReLU()), nn.Sequential(c3(8,12), nn.ReLU(), *pool_lin(12))), r'^1\.4\.'),
    simple_cnn= (lambda: SimpleCNN([3,8,12,3]), r'^2\.'),
    conv_end  = (lambda: nn.Sequential(c3(3,8), nn.ReLU(), c3(8,12), nn.ReLU(), c3(12,3,1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), r'^4\.'),
    within    = (lambda: nn.Sequential(nn.BatchNorm2d(3), tv.resnet18(num_classes=3)), r'^1\.fc\.'),
    timm_within=(lambda: nn.Sequential(nn.BatchNorm2d(3), timm_model('resnet10t')), r'^1\.fc\.'),
    softmax   = (lambda: nn.Sequential(xresnet18(widen=.25, n_out=3), nn.Softmax(1)), r'^0\.11\.'),
    no_classes= (lambda: nn.Sequential(headless_resnet(), nn.Linear(512,3)), r'^1\.'),
    compiled  = (lambda: torch.compile(flat(), backend='eager'), r'^_orig_mod\.6\.'),
    inside    = (lambda: nn.Sequential(torch.compile(plain_body(), backend='eager'), nn.Sequential(*pool_lin(12))), r'^1\.'),
    inside_dp = (lambda: nn.Sequential(nn.Identity(), nn.DataParallel(tv.resnet18(num_classes=3))), r'^1\.module\.fc\.'),
)

@pytest.mark.parametrize('kind', whole_models)
def test_the_term_trains_the_whole_body_and_nothing_else(kind):
    "Every parameter of the body gets a gradient, none of the head does; looking for it leaves no trace; twice gives the same"
    make,head = whole_models[kind]
    m = make().train()
    was,modes,rng = ws(m),[o.training for o in m.modules()],torch.get_rng_state()
    found = get_encoder(m)
    enc,again = as_encoder(found),as_encoder(get_encoder(m))
    assert torch.equal(was, ws(m)) and modes==[o.training for o in m.modules()] and torch.equal(rng, torch.get_rng_state())
    enc(torch.randn(2,3,64,64)).pow(2).mean().backward()
    lost = [n for n,p in m.named_parameters() if p.grad is None]
    assert lost==[n for n,_ in m.named_parameters() if re.search(head, n)]
    ids = {id(p) for p in m.parameters()}
    assert all(id(p) in ids for p in enc.parameters())
    x = torch.randn(1,3,64,64)
    assert torch.equal(enc.eval()(x), again.eval()(x))

@pytest.mark.parametrize('kind', ['resnet','shufflenet','tv_vit','timm_vit','flat','maxpools','within'])
def test_a_head_on_the_found_body_gives_what_the_model_gives(kind):
    "What the encoder hands over is what flows in the model itself, right before its last layer"
    m = whole_models[kind][0]().eval()
    x,seen = torch.randn(2,3,64,64),[]
    hook = last_linear(m).register_forward_pre_hook(lambda o,a: seen.append(a[0]))
    m(x)
    hook.remove()
    enc = as_encoder(get_encoder(m)).eval()
    f = enc.maps(x).flatten(1) if kind=='maxpools' else enc(x)
    if kind=='maxpools': f = nn.MaxPool2d(2)(enc.maps(x)).flatten(1)
    assert torch.allclose(f, seen[0], atol=1e-4)

def last_linear(m): return [o for o in m.modules() if isinstance(o, nn.Linear)][-1]

def test_what_was_found_is_forgotten_when_the_model_changes():
    m = tv.resnet18()
    a = get_encoder(m)
    m.layer4,m.fc = nn.Sequential(c3(256,8), nn.ReLU()),nn.Linear(8,3)
    assert as_encoder(a).nf==512 and as_encoder(get_encoder(m)).nf==8

@pytest.mark.parametrize('kind', ['resnet','flat','timm_resnet','tv_vit'])
def test_a_term_on_fastais_usual_forms(kind):
    "A whole fit; before, these were refused or trained through a part"
    dls = make_dls(n=8, bs=4, size=64, n_valid=4)
    learn = make_learn(term(views=None), dls=dls, model=whole_models[kind][0](), loss_func=lambda p,y: p.pow(2).mean(), metrics=[])
    was = ws(get_encoder(learn.model))
    fit(learn)
    assert not torch.equal(was, ws(get_encoder(learn.model))) and np.isfinite(learn.recorder.values[-1][0])

class Several(Module):
    def __init__(self): self.b,self.fc = plain_body(),nn.Linear(24,3)
    def forward(self, x, y): return self.fc(torch.cat([self.b(o).mean((2,3)) for o in (x,y)], 1))
class Deep(Module):
    def __init__(self): self.model = Net()
    def forward(self, x): return self.model(x)
class Loose(Module):
    def __init__(self): self.a,self.b,self.fc = c3(3,8),c3(8,12),nn.Linear(12,3)
    def forward(self, x): return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2,3)))
class Perceptron(Module):
    def __init__(self): self.a,self.b = nn.Linear(3*32*32,8),nn.Linear(8,3)
    def forward(self, x): return self.b(F.relu(self.a(x.flatten(1))))

@pytest.mark.parametrize('make, line', [
    (Net,      'm.trunk'),
    (Deep,     'm.model.trunk'),
    (Several,  'm.b'),
    (Loose,    "UpTo(m, 'fc')"),
    (Perceptron, "UpTo(m, 'b')"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3*32*32,8), nn.ReLU(), nn.Linear(8,3)), 'm[:3]'),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(28*28,8), nn.ReLU(), nn.Linear(8,3)), 'm[:3]'),
    (lambda: nn.Sequential(c3(3,8), nn.ReLU(), c3(8,12), nn.ReLU(), nn.ConvTranspose2d(12,8,2,2), nn.ReLU(), c3(8,3)), 'm[:4]'),
    (lambda: tv.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3), 'nn.Sequential(*m.backbone.children())'),
])
def test_the_line_in_the_message_works(make, line):
    m = make()
    with pytest.raises(ValueError, match='cannot find the encoder') as e: get_encoder(m)
    assert str(e.value).endswith(f'encoder=lambda m: {line}')
    enc = as_encoder(get_encoder(m, eval(f'lambda m: {line}')))
    assert enc.nf>3 and {id(p) for p in enc.parameters()}<={id(p) for p in m.parameters()}

def test_no_line_is_shown_where_none_works():
    with pytest.raises(ValueError, match='children are: 0. None of them takes images'): get_encoder(nn.Sequential(nn.Linear(5,5)))

def text_model():
    from fastai.text.models.core import get_text_classifier
    from fastai.text.models.awdlstm import AWD_LSTM
    return get_text_classifier(AWD_LSTM, 50, 2)
def table_model(cats):
    from fastai.tabular.model import TabularModel
    return TabularModel(cats, 2, 1, [8])

@pytest.mark.parametrize('make', [text_model, lambda: table_model([(3,2)]), lambda: table_model([]), lambda: nn.LSTM(3,4), lambda: nn.Sequential(nn.Conv1d(3,4,3), nn.Flatten()),
    lambda: tv.video.r3d_18(weights=None)])
def test_tables_texts_and_films_have_no_views(make):
    with pytest.raises(ValueError, match='^terms need images'): get_encoder(make())

def test_parts_of_the_model_are_an_encoder():
    for m,f in ((tv.resnet18(), lambda m: nn.Sequential(*list(m.children())[:-3])), (flat(), lambda m: m[:2]), (Net(), lambda m: Encoder(m.trunk)), (Loose(), lambda m: nn.Sequential(m.a, nn.ReLU()))):
        e = get_encoder(m, f)
        as_encoder(e)(torch.randn(2,3,64,64)).sum().backward()
        assert all(p.grad is not None for p in e.parameters())
    with pytest.raises(ValueError, match='is no part of'): get_encoder(flat(), lambda m: nn.Sequential(m[0], nn.Conv2d(8,4,1)))
    with pytest.raises(ValueError, match='is no part of'): get_encoder(flat(), deepcopy)
    with pytest.raises(ValueError, match='is no part of'): get_encoder(flat(), lambda m: nn.Identity())

@pytest.mark.parametrize('encoder, e, msg', [
    (lambda m: m.backbone, ValueError, "failed .AttributeError.*encoder=lambda m: m.trunk"),
    (lambda m: m[0],       ValueError, "failed .TypeError.*encoder=lambda m: m.trunk"),
    (lambda m: None,       ValueError, "is no part of Net"),
    ('trunk',              TypeError,  "encoder='trunk' is no function.*encoder=lambda m: m.trunk"),
])
def test_an_encoder_argument_that_does_not_work_is_named(encoder, e, msg):
    with pytest.raises(e, match=f'(?s){msg}'): get_encoder(Net(), encoder)

def test_up_to():
    m = tiny_vit().eval()
    x = torch.randn(2,3,64,64)
    e = UpTo(m, 'heads').eval()
    assert torch.allclose(m.heads(e(x)), m(x), atol=1e-5) and torch.equal(m.heads(UpTo(m, 'heads.head')(x)), m.heads(e(x)))
    assert not m.heads._forward_pre_hooks and torch.equal(deepcopy(e)(x), e(x))
    with pytest.raises(ValueError, match="VisionTransformer has no layer 'fc': it has conv_proj, encoder, heads"): UpTo(m, 'fc')
    m.unused = nn.Linear(1,1)
    with pytest.raises(ValueError, match="never comes to its layer 'unused'"): UpTo(m, 'unused')(x)

def test_an_encoder_that_cannot_be_found_is_asked_for():
    with pytest.raises(ValueError, match=r'Net is no nn.Sequential of body and head. Pass encoder=lambda m: m.NAME; its children are: trunk, fc'): get_encoder(Net())
    with pytest.raises(ValueError, match='is no part of Net'): get_encoder(Net(), plain_body())

# Files

@pytest.fixture
def file(tmp_path): return save_encoder(tiny_xr(), tmp_path/'e')

@pytest.mark.parametrize('arch, kwargs', [('xresnet18', dict(widen=.125)), ('vit_tiny_patch16_224', dict(depth=1, embed_dim=48, num_heads=3)), ('resnet10t', {})])
def test_round_trip(tmp_path, arch, kwargs):
    enc = create_encoder(arch, **kwargs)
    for p in enc.parameters(): nn.init.normal_(p, std=.1)
    fn = save_encoder(enc, tmp_path/'sub'/'e', recipe=dict(epochs=3, name='网'))
    assert fn==tmp_path/'sub'/'e.safetensors' and [o.name for o in fn.parent.iterdir()]==[fn.name]
    again = load_encoder(fn)
    assert torch.equal(ws(enc), ws(again)) and torch.equal(enc.eval()(x3), again.eval()(x3))
    assert (again.arch, {**kwargs, **again.kwargs}, again.nf, again.n_in)==(arch, again.kwargs, enc.nf, 3)
    assert again.recipe==dict(epochs=3, name='网')

def test_from_a_learner_with_its_normalisation(tmp_path):
    learn = make_learn(model=nn.Sequential(tiny_xr(n_in=3), nn.Linear(64,4)), dls=make_dls(after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)]))
    fn = save_encoder(learn, tmp_path/'e.safetensors')
    info = encoder_info(fn)
    assert (info['arch'], info['nf'], info['n_in'], info['kwargs'], info['recipe'])==('xresnet18', 64, 3, dict(widen=.125), None)
    assert np.allclose(info['stats']['mean'], imagenet_stats[0]) and np.allclose(load_encoder(fn).stats['std'], imagenet_stats[1])

def test_a_module_of_your_own_needs_itself(tmp_path):
    m = plain_body()
    fn = save_encoder(m, tmp_path/'own')
    with pytest.raises(ValueError, match='Sequential, which no library here can rebuild by name: pass arch='): load_encoder(fn)
    assert torch.equal(ws(load_encoder(fn, plain_body())), ws(m))

def test_loading_never_unpickles(file, monkeypatch):
    def _no(*args, **kwargs): raise AssertionError('unpickled')
    for m,k in ((pickle,'load'), (pickle,'loads'), (torch,'load'), (pickle,'Unpickler')): monkeypatch.setattr(m, k, _no)
    load_encoder(file)

def test_another_archs_file_says_where_they_part(file):
    with pytest.raises(ValueError) as e: load_encoder(file, 'xresnet18', widen=.25)
    assert f'{file} (arch xresnet18) does not fit xresnet18: 100 keys differ' in str(e.value)
    assert '4.0.convpath.0.0.weight: (8, 64, 3, 3) in the file, (16, 64, 3, 3) in the encoder' in str(e.value) and len(str(e.value).splitlines())==14
    with pytest.raises(ValueError, match='does not fit Sequential.*\n- missing in the file: 0.weight'): load_encoder(file, plain_body())
    with pytest.raises(ValueError, match='not in the encoder: 0.1.num_batches_tracked'): load_encoder(file, nn.Sequential(nn.Conv2d(3,4,3)))

def test_weights_that_do_not_fit_change_nothing(file):
    m = plain_body()
    was = ws(m)
    with pytest.raises(ValueError): load_encoder(file, m)
    assert torch.equal(was, ws(m))

@pytest.mark.parametrize('content, msg', [(b'', 'not a safetensors file'), (b'\x80\x04garbage'*20, 'not a safetensors file'), ('cut', 'not a safetensors file'),
    ('bare', 'no fastai_contrastive header')])
def test_a_broken_file_is_named(file, content, msg):
    from safetensors.torch import save_file
    if content=='cut': file.write_bytes(file.read_bytes()[:500])
    elif content=='bare': save_file(dict(a=torch.zeros(2)), file)
    else: file.write_bytes(content)
    with pytest.raises(ValueError, match=f'{file.name}.*{msg}'): load_encoder(file)

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights at .*nowhere'): load_encoder(tmp_path/'nowhere.safetensors')

# Writing

def test_what_cannot_be_written_is_found_before(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('x')
    with pytest.raises(NotADirectoryError, match='is a file; choose another folder'): check_writable(tmp_path/'file'/'e.safetensors')
    with pytest.raises(IsADirectoryError, match='it is a folder'): check_writable(tmp_path)
    def _denied(*args, **kwargs): raise PermissionError(13, 'Permission denied')
    with monkeypatch.context() as m:
        m.setattr(Path, 'touch', _denied)
        with pytest.raises(PermissionError, match='cannot write .*Permission denied.*another folder'): check_writable(tmp_path/'e')
    assert check_writable(tmp_path/'new'/'e')==tmp_path/'new'/'e' and not list((tmp_path/'new').iterdir())

@pytest.mark.skipif(os.geteuid()==0, reason='root may write everywhere')
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match='choose another folder'): check_writable(tmp_path/'e')
    finally: tmp_path.chmod(0o700)

@pytest.mark.parametrize('e', [RuntimeError,KeyboardInterrupt])
def test_a_crash_while_writing_leaves_the_old_file(file, monkeypatch, e):
    was = file.read_bytes()
    def _half(self, data): self.write_text('half'); raise e
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_bytes', _half)
        with pytest.raises(e): save_encoder(tiny_xr(), file)
    assert file.read_bytes()==was and [o.name for o in file.parent.iterdir()]==[file.name]

def test_weights_can_be_read_by_whom_other_files_can(file):
    other = file.with_name('other')
    other.touch()
    assert file.stat().st_mode==other.stat().st_mode

# Wrapped

eager = partial(torch.compile, backend='eager')
def checkpointed(m):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    return checkpoint_wrapper(m)
wraps = dict(compile=eager, dp=nn.DataParallel, both=lambda m: eager(nn.DataParallel(m)), checkpoint=checkpointed, mean=torch.optim.swa_utils.AveragedModel)

class Own(Module):
    "A layer that is called as a wrapper's is"
    def __init__(self): self.module,self.end = nn.Sequential(c3(3,8), nn.ReLU()),c3(8,12)
    def forward(self, x): return self.end(self.module(x))

def seeded(f):
    set_seed(3)
    return f()

@pytest.mark.parametrize('where', ['whole','body','part','both'])
@pytest.mark.parametrize('wrap', wraps)
def test_a_wrapped_encoder_writes_the_same_file(tmp_path, wrap, where):
    w,enc,ref = wraps[wrap],seeded(lambda: Encoder(Own())),seeded(lambda: save_encoder(Encoder(Own()), tmp_path/'ref').read_bytes())
    if where in ('part','both'): enc.body.end,enc.body.module = w(enc.body.end),w(enc.body.module)
    if where in ('body','both'): enc.body = w(enc.body)
    fn = save_encoder(w(enc) if where in ('whole','both') else enc, tmp_path/'e')
    assert fn.read_bytes()==ref
    assert wrap=='mean' or create_encoder(w(enc)) is enc # an average is of a copy

@pytest.mark.parametrize('wrap', wraps)
def test_wrapped_inside_a_learner(tmp_path, wrap):
    w = wraps[wrap]
    files = []
    for f in (noop, w):
        for learn_f in (lambda: nn.Sequential(f(seeded(lambda: Encoder(Own()))), nn.Linear(12,4)), lambda: f(nn.Sequential(seeded(lambda: Encoder(Own())), nn.Linear(12,4)))):
            files.append(save_encoder(Learner(make_dls(), learn_f(), loss_func=CrossEntropyLossFlat()), tmp_path/f'{len(files)}').read_bytes())
    assert len(set(files))==1

@pytest.mark.parametrize('wrap', wraps)
def test_a_wrapped_encoder_is_named_loaded_and_copied(tmp_path, wrap):
    w,ref = wraps[wrap],seeded(lambda: Encoder(Own())).eval()
    enc = Encoder(w(Own())).eval()
    assert (enc.arch, enc.nf)==('Own', 12) and Encoder(nn.DataParallel(w(Own()))).arch=='Own'
    fn = save_encoder(ref, tmp_path/'e')
    for target in (w(Own()), enc, Encoder(nn.Sequential(w(Own()))).body[0]): assert torch.equal(load_encoder(fn, target).eval()(x3), ref(x3))
    assert torch.equal(deepcopy(enc)(x3), enc(x3))

def test_a_layer_called_module_keeps_its_name(tmp_path):
    assert list(encoder.plain_names(nn.DataParallel(Own())))==list(Own().state_dict())

fsdp = """
import os, sys, torch, warnings
from torch import nn
warnings.simplefilter('ignore')
from fastai_contrastive.encoder import *
torch.distributed.init_process_group('gloo', init_method=f'file://{sys.argv[1]}/store', rank=0, world_size=1)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
cpu = torch.device('cpu')
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8,12,3)))
def spread(m, **kwargs): return FullyShardedDataParallel(m, device_id=cpu, **kwargs)
def one(): return fully_shard(make())
def part(f):
    m = make()
    m[2] = f(m[2])
    return m
ref = save_encoder(Encoder(make()), f'{sys.argv[1]}/ref').read_bytes()
cases = [lambda: spread(make()), lambda: spread(make(), use_orig_params=True), lambda: spread(Encoder(make())), lambda: part(spread), lambda: part(fully_shard), one,
    lambda: spread(nn.Sequential(Encoder(make()), nn.Linear(12,2))), lambda: nn.parallel.DistributedDataParallel(make()), lambda: Encoder(nn.parallel.DistributedDataParallel(make()))]
print([save_encoder(f(), f'{sys.argv[1]}/e').read_bytes()==ref for f in cases])
torch.distributed.destroy_process_group()
"""

def test_sharded_encoders_write_the_same_file(tmp_path):
    "FSDP, its successor and DDP, for real, in a process of their own"
    r = forked.code(fsdp, tmp_path, timeout=300)
    assert r.returncode==0 and r.stdout.splitlines()[-1]==str([True]*9), r.stdout+r.stderr

# Found ones, written and read

@pytest.mark.parametrize('kind, arch', [('xresnet', partial(xresnet18, widen=.25)), ('resnet', resnet18), ('mobilenet2', partial(tv.mobilenet_v2, width_mult=.25)), ('shufflenet', 'shufflenet_v2_x0_5'),
    ('squeezenet', 'squeezenet1_1'), ('tv_vit', tiny_vit), ('unet', resnet18), ('timm_resnet', None), ('timm_vit', 'own'), ('timm_conv', None), ('timm_body', None), ('flat', lambda: nn.Sequential(*list(flat())[:4]))])
def test_a_found_encoder_is_read_without_its_classifier(tmp_path, kind, arch):
    m = whole_models[kind][0]()
    learn = make_learn(model=m, dls=make_dls(size=64))
    fn = save_encoder(learn, tmp_path/'e')
    args = dict(depth=1, img_size=64) if arch=='own' else {}
    again = load_encoder(fn, None if arch=='own' else arch, **args).eval()
    enc = as_encoder(get_encoder(m)).eval()
    x = torch.randn(2,3,64,64)
    if kind!='timm_body': assert torch.allclose(again(x), enc(x), atol=1e-5)
    assert again.nf==enc.nf and encoder_info(fn)['stats']==dict(mean=[0.], std=[1.])
    assert not any(o.out_features==3 for o in again.modules() if isinstance(o, nn.Linear)) or kind=='tv_vit'

def test_timm_under_a_name_that_torchvision_has(tmp_path):
    learn = make_learn(model=timm.create_model('resnet18', num_classes=3), dls=make_dls(size=64))
    fn = save_encoder(learn, tmp_path/'e')
    assert encoder_info(fn)['arch']=='timm:resnet18' and type(load_encoder(fn).body).__module__=='timm.models.resnet'
    assert create_encoder(timm.models.resnet18).arch=='timm:resnet18' and create_encoder('resnet18').arch=='resnet18'

def test_a_whole_model_is_not_written_for_its_encoder(tmp_path):
    "`learn.model` in place of `learn`, and `encoder=` for what is no learner"
    enc = tiny_xr()
    ref = save_encoder(enc, tmp_path/'a').read_bytes()
    assert save_encoder(nn.Sequential(enc, nn.Linear(64,2)), tmp_path/'b').read_bytes()==ref
    net = Net()
    assert save_encoder(net, tmp_path/'c', encoder=lambda m: m.trunk).read_bytes()==save_encoder(net.trunk, tmp_path/'d').read_bytes()
    with pytest.raises(TypeError, match='save_encoder writes the encoder of a Learner, or a module: got OrderedDict'): save_encoder(enc.state_dict(), tmp_path/'x')

# Statistics

def test_no_normalize_is_written_as_such(tmp_path):
    learn = make_learn(model=nn.Sequential(tiny_xr(), nn.Linear(64,4)))
    assert load_encoder(save_encoder(learn, tmp_path/'e')).stats==dict(mean=[0.], std=[1.])
    learn.dls = DataLoaders(*[torch.utils.data.DataLoader([0])]*2)
    assert load_encoder(save_encoder(learn, tmp_path/'e')).stats is None

def test_a_bare_encoder_keeps_what_it_brings(tmp_path):
    enc = tiny_xr()
    assert enc.stats is None and enc.recipe is None and encoder_info(save_encoder(enc, tmp_path/'a'))['stats'] is None
    enc.stats,enc.recipe = dict(mean=[.5]*3, std=[.2]*3),dict(epochs=3)
    again = load_encoder(save_encoder(deepcopy(load_encoder(save_encoder(enc, tmp_path/'a'))), tmp_path/'b'))
    assert (again.stats, again.recipe)==(enc.stats, enc.recipe)
    assert encoder_info(save_encoder(enc, tmp_path/'c', recipe=dict(epochs=4)))['recipe']==dict(epochs=4)

@pytest.mark.parametrize('arch, mean', [('xresnet18', imagenet_stats[0]), (resnet18, imagenet_stats[0]), ('vit_tiny_patch16_224', [.5]*3), ('resnet10t', imagenet_stats[0])])
def test_pretrained_weights_say_what_they_saw(monkeypatch, arch, mean):
    "Nothing is downloaded here: the weights are drawn, what is said about them is real"
    real = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *args, pretrained, **kwargs: real(*args, pretrained=False, **kwargs))
    monkeypatch.setattr('torchvision.models.resnet.ResNet18_Weights.get_state_dict', lambda *args, **kwargs: tv.resnet18().state_dict())
    monkeypatch.setattr('fastai.vision.models.xresnet.load_state_dict_from_url', lambda *args, **kwargs: dict(model={}))
    kwargs = dict(depth=1) if 'vit' in str(arch) else {}
    enc = create_encoder(arch, pretrained=True, **kwargs)
    assert np.allclose(enc.stats['mean'], mean) and deepcopy(enc).stats==enc.stats
    assert create_encoder(arch, **kwargs).stats is None and create_encoder(arch, n_in=1, pretrained=arch!='xresnet18', **kwargs).stats is None

def test_old_headers_and_short_ones(tmp_path):
    from safetensors.torch import save_file
    m = plain_body()
    for meta,e in (({'arch':'Sequential','n_in':3,'stats':None}, None), ({'arch':'Sequential'}, 'does not say n_in'), ('{', 'is no JSON')):
        save_file(m.state_dict(), tmp_path/'e', {'fastai_contrastive': meta if isinstance(meta, str) else json.dumps(meta)})
        if e:
            with pytest.raises(ValueError, match=e): load_encoder(tmp_path/'e', plain_body())
        else: assert load_encoder(tmp_path/'e', plain_body()).stats is None

def test_a_setting_that_is_no_json_is_asked_for(tmp_path):
    enc = create_encoder(partial(xresnet18, widen=.125, act_cls=nn.Hardswish))
    fn = save_encoder(enc, tmp_path/'e', recipe=dict(path=tmp_path))
    with pytest.raises(ValueError, match=r'xresnet18 made with act_cls=, which a file cannot hold: pass arch=partial'): load_encoder(fn)
    again = load_encoder(fn, partial(xresnet18, widen=.125, act_cls=nn.Hardswish))
    assert torch.equal(again.eval()(x3), enc.eval()(x3)) and again.recipe==dict(path=str(tmp_path))

# Made from other things

def test_functions_of_many_kinds():
    for arch in (partial(xresnet18, widen=.125), lambda: xresnet18(widen=.125, n_out=5), xresnet18(widen=.125), torch.compile(xresnet18(widen=.125), backend='eager'), lambda: tiny_xr()):
        assert create_encoder(arch).nf==64
    assert create_encoder(partial(xresnet18, widen=.125)).kwargs==dict(widen=.125)
    assert create_encoder(tv.resnet18()).nf==512 and create_encoder(tiny_vit()).nf==32 and create_encoder(timm.create_model('resnet10t')).nf==512
    assert all(create_encoder(f).nf==n for f,n in ((tv.mobilenet_v2, 1280), ('shufflenet_v2_x0_5', 1024)))
    with pytest.raises(TypeError, match='made no module: got int 3'): create_encoder(lambda: 3)
    with pytest.raises(TypeError, match='pretrained'): create_encoder(lambda: plain_body(), pretrained=True)

def test_a_width_that_changes_with_the_size_is_named():
    enc = Encoder(nn.Sequential(plain_body(), nn.Flatten()))
    with pytest.raises(ValueError, match=r'Sequential gives 588 features for images of 32×32 pixels, and was measured with 2700: let it pool'): enc(x3)
    with pytest.raises(ValueError, match='was measured with'): enc.both(x3)

@pytest.mark.parametrize('size', [28,32,96])
def test_networks_for_one_size(size):
    for m in (nn.Sequential(nn.Flatten(), nn.Linear(3*size*size,8)), nn.Sequential(c3(3,4), nn.ReLU(), nn.Flatten(), nn.Linear(4*size*size,8))):
        enc = Encoder(m)
        assert enc.nf==8 and enc(torch.randn(2,3,size,size)).shape==(2,8)

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half_precision(tmp_path, dtype):
    enc = tiny_xr().to(dtype)
    assert get_encoder(nn.Sequential(enc, nn.Linear(64,2).to(dtype))) is enc and Encoder(enc.body).nf==64
    again = load_encoder(save_encoder(enc, tmp_path/'e'))
    assert torch.equal(ws(again), ws(enc)) and next(again.parameters()).dtype==torch.float32

def test_a_frozen_encoder(tmp_path):
    m = xresnet18(widen=.125).requires_grad_(False)
    fn = save_encoder(get_encoder(m), tmp_path/'e')
    assert torch.equal(load_encoder(fn, partial(xresnet18, widen=.125)).eval()(x3), as_encoder(get_encoder(m)).eval()(x3))

# Pickled

portable = dict(cnn=(tiny_xr, 32), vit=(lambda: create_encoder('test_vit', patch_size=8), 64), tokens=(lambda: Encoder(nn.Sequential(c3(3,8), nn.Flatten(2), Lambda2())), 32), split=(lambda: create_encoder('split:xresnet18', widen=.125), 32),
    flat=(lambda: Encoder(nn.Sequential(plain_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())), 32), up_to=(lambda: Encoder(UpTo(tiny_vit(), 'heads.head')), 64), whole=(lambda: Encoder(timm_model('resnet10t')), 64),
    compiled=(lambda: Encoder(eager(plain_body())), 32))

class Lambda2(nn.Module):
    def forward(self, x): return x.transpose(1,2)

@pytest.mark.parametrize('kind', portable)
def test_pickled_it_is_itself_and_plainly_the_same(kind, tmp_path):
    make,size = portable[kind]
    enc,x = make().eval(),torch.randn(2,3,size,size)
    enc.stats = dict(mean=[.5], std=[.2])
    torch.save(enc, tmp_path/'e')
    for o in (pickle.loads(pickle.dumps(enc)), torch.load(tmp_path/'e', weights_only=False), copy(enc), deepcopy(enc)):
        assert type(o) is Encoder and (o.nf, o.arch, o.stats, o.training)==(enc.nf, enc.arch, enc.stats, False) and torch.equal(o(x), enc(x))
    assert torch.allclose(enc.plain().eval()(x), enc(x), atol=1e-5)

hidden = """
import sys, warnings
warnings.simplefilter('ignore')
class Hide:
    def find_spec(self, name, *args):
        if name.partition('.')[0]=='fastai_contrastive': raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hide())
from fastai.vision.all import *
for p in sys.argv[1:]:
    learn = load_learner(p)
    with learn.no_bar(), learn.no_logging(): res = learn.predict(Path(p).parent/'a0.png')[2]
    print(json.dumps(res.tolist()))
"""

def test_an_exported_learner_opens_without_the_package(tmp_path):
    "And predicts what it did; with the package it has its encoder again"
    fs = [tmp_path/f'{"ab"[i%2]}{i}.png' for i in range(4)]
    for i,f in enumerate(fs): PILImage.create((images(4, 64)[0][i].permute(1,2,0)*255).byte().numpy()).save(f)
    dls = ImageDataLoaders.from_lists(tmp_path, fs, [o.name[0] for o in fs], bs=2, num_workers=0, valid_pct=.5, seed=1, device='cpu')
    want,pkls = [],[]
    for kind in ('cnn','vit','split','up_to'):
        learn = finetune_learner(dls, portable[kind][0](), path=tmp_path)
        with quietly(learn): want.append(learn.predict(fs[0])[2])
        learn.export(f'{kind}.pkl')
        pkls.append(tmp_path/f'{kind}.pkl')
        assert type(learn.model[0]) is Encoder and type(load_learner(pkls[-1]).model[0]) is Encoder
    r = forked.code(hidden, *pkls, timeout=300)
    assert r.returncode==0, r.stdout+r.stderr
    got = [json.loads(o) for o in r.stdout.splitlines() if o.startswith('[')]
    assert np.allclose(got, [o.tolist() for o in want], atol=1e-5)

# Two halves

def test_a_split_encoder_starts_as_what_it_was_made_of():
    "The two first convolutions add up to the one, and nothing else differs"
    enc = create_encoder(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1)))
    was,split = ws(enc).clone(),split_encoder(enc)
    l,c = split.body.luma.body,split.body.chroma.body
    y,col = channel_split(x3)
    assert torch.allclose(l[0](y)+c[0](col), enc.body[0](x3), atol=1e-4)
    assert torch.equal(l[1].weight, enc.body[1].weight) and torch.equal(c[1].weight, enc.body[1].weight) and l[1].weight is not c[1].weight
    assert torch.equal(was, ws(enc)) and split_encoder(split) is split and (split.nf, split.n_in)==(10, 3)

@pytest.mark.parametrize('arch, kwargs', [('xresnet18', dict(widen=.125)), ('convnext_atto', {}), ('test_vit', dict(patch_size=8, depth=2)), ('deit_tiny_patch16_224', dict(depth=1, dynamic_img_size=False, img_size=32))])
def test_split_round_trip(tmp_path, arch, kwargs):
    enc = create_encoder(f'split:{arch}', **kwargs)
    for p in enc.parameters(): nn.init.normal_(p, std=.1)
    enc.eval()
    m,f = enc.maps(x3),enc(x3)
    for half,x,s in zip((enc.body.luma,enc.body.chroma), channel_split(x3), (slice(0,enc.nf//2),slice(enc.nf//2,None))):
        assert torch.allclose(f[:,s], half(x), atol=1e-5) and torch.allclose(m[:,s], half.maps(x), atol=1e-5)
    again = load_encoder(save_encoder(enc, tmp_path/'e')).eval()
    assert (again.arch, again.nf)==(f'split:{arch}', enc.nf) and torch.equal(again(x3), f) and torch.equal(again.maps(x3), m)

def test_a_split_module_of_your_own(tmp_path):
    enc = split_encoder(create_encoder(plain_body()))
    fn = save_encoder(enc, tmp_path/'own')
    with pytest.raises(ValueError, match='holds split:Sequential.*pass arch='): load_encoder(fn)
    for m in (plain_body(), split_encoder(create_encoder(plain_body()))): assert torch.equal(load_encoder(fn, m).eval()(x3), enc.eval()(x3))
    with pytest.raises(ValueError, match='does not fit'): load_encoder(fn, body())

def test_pooled_features_split_too_but_have_no_maps():
    enc = split_encoder(create_encoder(nn.Sequential(plain_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    assert enc(x3).shape==(2,24)
    with pytest.raises(ValueError, match='pooled features only'): enc.maps(x3)

def test_what_cannot_be_split_is_named():
    with pytest.raises(ValueError, match='with n_in=1'): create_encoder('split:xresnet18', n_in=1, widen=.125)
    with pytest.raises(ValueError, match='cannot split Sequential.*is None'): split_encoder(create_encoder(nn.Sequential(nn.Flatten(), nn.Linear(3*64*64,4))))
    with pytest.raises(ValueError, match="unknown arch 'xresent18'.*xresnet18"): create_encoder('split:xresent18')
