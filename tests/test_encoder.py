"Encoders of every origin, and their files"
import pickle, pytest, subprocess, sys
from utils import *
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

def test_a_whole_xresnet_is_no_body_and_head():
    "It is an `nn.Sequential` whose first child is a stem: taking that for the encoder would be a silent mistake"
    with pytest.raises(ValueError, match='cannot find the encoder: XResNet'): get_encoder(xresnet18())

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
