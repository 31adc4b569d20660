import pickle, pytest, torch, warnings
import torchvision.transforms.v2.functional as TF
from torch import tensor
from PIL import Image
from fastai.vision.all import DataBlock, ImageBlock, CategoryBlock, Normalize, TensorImage, Resize, get_image_files, imagenet_stats
from fastai_contrastive.views import *

MEAN,STD = (tensor(o)[:,None,None] for o in imagenet_stats)
OFF = dict(scale=None, p_flip=0, p_jitter=0, p_grey=0, p_blur=0)

def images(bs=6, h=64, w=64, seed=0):
    "Smooth random images in 0-1, none of it flat"
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(bs,3,9,9,generator=g), (h,w), mode='bicubic').clamp(.02,.98)
    return (x + .02*torch.rand(bs,3,h,w,generator=g) - .01).clamp(0,1)

def normed(views):
    views.mean,views.std = map(tuple, imagenet_stats)
    return views

def close(a, b, tol): assert a.shape==b.shape and (a-b).abs().max()<=tol, f'shapes {a.shape} {b.shape}, off by {(a-b).abs().max():.2e}'

@pytest.fixture
def folder(tmp_path):
    for i in range(8): Image.new('RGB', (40,36), (30*i,100,250-30*i)).save(tmp_path/f'{"ab"[i%2]}_{i}.png')
    return tmp_path

def make_dls(folder, labels=False, tfms=(Normalize.from_stats(*imagenet_stats, cuda=False),)):
    blocks = (ImageBlock,CategoryBlock) if labels else ImageBlock
    get_y = dict(get_y=lambda p: p.name[0]) if labels else {}
    block = DataBlock(blocks, get_items=get_image_files, n_inp=1, item_tfms=Resize(32), batch_tfms=[*tfms], **get_y)
    return block.dataloaders(folder, bs=4)

# Each change against torchvision's, per sample, with the values that were drawn

@pytest.mark.parametrize('h,w,size', [(64,64,64), (48,80,40), (60,60,(24,36)), (33,47,96)])
def test_crop_and_flip(h, w, size):
    x,v = images(h=h, w=w),Views(size=size, **{**OFF, 'scale':(.1,1.), 'p_flip':.5})
    torch.manual_seed(0); p = v.draw(len(x), h, w)
    assert 0<p.flip.sum()<len(x)
    for o,im,b,f in zip(v.apply(x,p), x, p.box.int().tolist(), p.flip):
        ref = TF.resized_crop(im, *b, size=list(p.size), antialias=True)
        close(o, TF.horizontal_flip(ref) if f else ref, 2e-5)

@pytest.mark.parametrize('name,k,fn,tol', [
    ('brightness', 0, TF.adjust_brightness, 1e-5), ('contrast', 1, TF.adjust_contrast, 5e-4), ('saturation', 2, TF.adjust_saturation, 5e-4)])
@pytest.mark.parametrize('norm', [False, True])
def test_jitter(name, k, fn, tol, norm):
    x,v = images(),Views(**{**OFF, 'p_jitter':1, 'brightness':0, 'contrast':0, 'saturation':0, 'hue':0, name:.6})
    p = v.draw(len(x), 64, 64)
    assert len(p.colour[k].unique())==len(x) and 0<(p.colour[k]-1).abs().max()<=.6
    out = normed(v).apply((x-MEAN)/STD, p)*STD+MEAN if norm else v.apply(x, p)
    for o,im,f in zip(out, x, p.colour[k]): close(o, fn(im, float(f)), tol)

def test_grey():
    x,v = images(),Views(**{**OFF, 'p_grey':.5})
    torch.manual_seed(0); p = v.draw(len(x), 64, 64)
    assert 0<p.colour[4].sum()<len(x)
    for o,im,g in zip(v.apply(x,p), x, p.colour[4]): close(o, TF.rgb_to_grayscale(im,3) if g else im, 5e-4)

def test_hue_is_a_rotation_of_the_colours():
    one,no = torch.ones(1),tensor([False])
    for t in (-1/3,1/3):
        A,_ = colour_mats(one, one, one, t*one, no)
        for im in images(): close((A[0]@im.flatten(1)).view_as(im), TF.adjust_hue(im, t), 1e-4)
    x = images(h=32, w=32)
    for t in (-.1,.1):
        A,_ = colour_mats(one, one, one, t*one, no)
        out,ref = (A@x.flatten(2)).view_as(x).clamp(0,1),TF.adjust_hue(x, t)
        assert (out-ref).abs().mean() < .75*(x-ref).abs().mean()
        close(A@torch.full((1,3,1),.3), torch.full((1,3,1),.3), 1e-6)

def test_grey_wins_over_hue_and_saturation():
    v = Views(**{**OFF, 'p_jitter':1, 'p_grey':1})
    out = v(images())[0]
    close(out[:,:1].expand_as(out), out, 1e-5)

@pytest.mark.parametrize('grey', [False, True])
def test_all_colours_in_torchvisions_order(grey):
    x,f = .4+.2*images(),[tensor([o]) for o in (1.2,.7,1.3,1/3)] # so flat that nothing is clamped
    A,B = colour_mats(*f, tensor([grey]))
    p = x.flatten(2)
    out = (A@p + B@p.mean(2, keepdim=True)).view_as(x)
    for o,ref in zip(out, x):
        for fn,v in zip((TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue), f): ref = fn(ref, float(v))
        close(o, TF.rgb_to_grayscale(ref,3) if grey else ref, 5e-4)

@pytest.mark.parametrize('size,width', [((64,64),7), ((32,32),3), ((50,90),5)])
def test_blur(size, width):
    x,v = images(h=size[0], w=size[1]),Views(**{**OFF, 'p_blur':.5, 'sigma':(.3,3.)})
    torch.manual_seed(1); p = v.draw(len(x), *size)
    assert 0<(p.sigma>0).sum()<len(x)
    for o,im,s in zip(v.apply(x,p), x, p.sigma): close(o, TF.gaussian_blur(im, [width]*2, [float(s)]*2) if s>0 else im, 2e-5)

@pytest.mark.parametrize('norm', [False, True])
def test_solarize(norm):
    x,v = images(),Views(**{**OFF, 'p_solarize':.5})
    torch.manual_seed(0); p = v.draw(len(x), 64, 64)
    assert 0<p.solarize.sum()<len(x)
    out = normed(v).apply((x-MEAN)/STD, p)*STD+MEAN if norm else v.apply(x, p)
    for o,im,s in zip(out, x, p.solarize):
        far = (im-.5).abs()>1e-4
        close(o*far, (TF.solarize(im,.5) if s else im)*far, 1e-5)

def test_all_off_is_the_image():
    x = images()
    for o in Views(**OFF)(x): close(o, x, 1e-6)

# Normalisation

def test_normalised_batch_gives_the_same_view():
    x,v,n = images(),Views(p_solarize=.5, brightness=.8, n_small=1),normed(Views())
    for i in range(3):
        p = v.draw(len(x), 64, 64, i)
        a,b = v.apply(x, p),n.apply((x-MEAN)/STD, p)*STD+MEAN
        assert a.min()>=0 and a.max()<=1
        assert ((a-b).abs()<1e-4).float().mean()>.9999 # a pixel on solarize's threshold may go either way

def test_normalised_batch_is_not_clamped_to_0_1():
    x = (images()-MEAN)/STD
    out = normed(Views(**OFF))(x)[0]
    close(out, x, 1e-5)
    assert out.min()<-1 and out.max()>1

def test_setup_reads_normalize(folder):
    for labels in (False,True):
        dls = make_dls(folder, labels)
        v = Views(**OFF)
        assert v.setup(dls) is v
        close(tensor(v.mean), tensor(imagenet_stats[0]), 1e-6); close(tensor(v.std), tensor(imagenet_stats[1]), 1e-6)
        x = dls.one_batch()[0]
        out = v(x)[0]
        assert isinstance(x, TensorImage) and type(out) is torch.Tensor
        close(out, torch.Tensor(x), 1e-4)
        v.setup(dls.valid); assert v.mean
    assert v.setup(make_dls(folder, tfms=())).mean is None

# Images that never were 0-1

def spread(v): return torch.stack([o.std() for o in v.flatten(0,1)])

@pytest.mark.parametrize('lo,span', [(0,4000), (270,40), (-1000,4000), (0,255), (0,65535), (-30,25), (1e6,10)], ids=str)
@pytest.mark.parametrize('c', [1,3,5])
def test_any_range_has_views_as_good(lo, span, c):
    "Reflectances, kelvin, Hounsfield units, 8 and 16 bits, decibels: the views are those of the same images in 0-1"
    x = torch.cat([images(),images(seed=1)], 1)[:,:c]
    q = x.flatten(2) if c!=3 else x.flatten(1)[:,None]
    lo0,hi0 = (o.view(6,-1,1,1) for o in (q.amin(2),q.amax(2)))
    x = (x-lo0)/(hi0-lo0)
    m,d = lo+span/2,span/3.5
    v,plain = Views(mean=(m,)*c, std=(d,)*c, p_solarize=.3, brightness=.6),Views(p_solarize=.3, brightness=.6)
    p = plain.draw(6, 64, 64)
    far = (p.colour is not None)
    out = (v.apply((lo+span*x-m)/d, p)*d+m-lo)/span
    want = plain.apply(x, p)
    assert far and ((out-want).abs()<.01).float().mean()>.995 # float32 of 1e6 has 5 digits; solarize's threshold
    assert (spread(v((lo+span*x-m)/d)[0])>.02).all()

def test_issue_reflectances(folder):
    "Reflectances under their own Normalize: the views' deviation is the batch's, not 0"
    x = (4000*images()-2000)/1155
    v = Views(mean=(2000.,)*3, std=(1155.,)*3)
    for o in v(x): assert .5*x.std()<o.std()<2*x.std() and len(o.unique())>10_000

def test_value_range_is_the_data_sets():
    "With a range that is told a dark image stays dark: nothing is stretched, and what goes beyond is clamped"
    x,off = 1000*images(),{**OFF, 'p_jitter':1, 'contrast':0, 'saturation':0, 'hue':0}
    v = Views(**{**off, 'brightness':1.}, value_range=(0,4000), mean=(0,), std=(1,))
    p = v.draw(6, 64, 64); p.colour[0].fill_(2.)
    close(v.apply(x, p), 2*x, 1e-2)
    p.colour[0].fill_(9.)
    assert abs(v.apply(x, p).max()-4000)<.01
    s = Views(**OFF, p_solarize=1, value_range=(0,4000), mean=(0,), std=(1,))(x+2000)[0]
    close(s, 4000-(x+2000), 1e-2)

def test_usual_images_are_clamped_to_0_1():
    x,v = images(),Views(**{**OFF, 'p_jitter':1, 'brightness':1.})
    p = v.draw(6, 64, 64); p.colour[0].fill_(3.)
    out = v.apply(x, p)
    assert out.min()>=0 and out.max()==1 and (out==1).float().mean()>.3

def test_a_constant_image_is_no_division_by_zero():
    for val in (0.,.5,7.,-3.): assert all(o.isfinite().all() for o in Views(mean=(0,), std=(1,))(torch.full((2,3,16,16), val)))

def test_dark_first_batch_decides_nothing(folder):
    "A first batch in 0-1 does not make constants of the later ones"
    v = Views().setup(make_dls(folder, tfms=()))
    v(images())
    for o in v(4000*images()): assert (spread(o)>100).all()

# Statistics that the views are told

def test_told_stats_stay(folder):
    v = Views(**OFF, mean=imagenet_stats[0], std=imagenet_stats[1])
    v.setup(make_dls(folder, tfms=()))
    assert v.mean==tuple(imagenet_stats[0]) and v.std==tuple(imagenet_stats[1])
    x = (images()-MEAN)/STD
    close(v(x)[0], x, 1e-5)
    assert v.but(p_flip=1.).mean==v.mean and v.but(mean=None, std=None).mean is None

def test_seen_stats_are_no_setting(folder):
    v = Views().setup(make_dls(folder))
    assert v.mean and v.but(n=3).mean is None and repr(v)=='Views()'

def test_told_stats_against_normalize(folder):
    with pytest.warns(UserWarning, match='the dataloaders and the views.* are normalised in two ways'):
        v = Views(mean=(.5,), std=(.5,)).setup(make_dls(folder))
    assert v.mean==(.5,)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Views(mean=imagenet_stats[0], std=imagenet_stats[1]).setup(make_dls(folder))

def test_torch_loaders():
    "Nothing is known of them: images in 0-1 are taken as they are, others only if the views are told"
    dl = torch.utils.data.DataLoader(images(), batch_size=3)
    x = next(iter(dl))
    assert len(Views().setup(dl)(x))==2
    with pytest.raises(ValueError, match=r'must be in 0-1.*Normalize to the dataloaders.*views=Views\(mean=') as e: Views().setup(dl)((x-MEAN)/STD)
    assert 'setup' not in str(e.value)
    assert len(Views(mean=imagenet_stats[0], std=imagenet_stats[1]).setup(dl)((x-MEAN)/STD))==2

def test_repr():
    assert repr(Views())=='Views()' and repr(Views(n=3, hue=0.))=='Views(n=3, hue=0.0)'
    v = simclr_views(32, mean=(.5,), std=(.5,))
    assert repr(eval(repr(v)))==repr(v) and 'mean=(0.5,)' in repr(v)

def test_setup_bad_input(folder):
    with pytest.raises(TypeError, match='got list; pass learn.dls'): Views().setup([1])
    dls = make_dls(folder)
    dls.train.after_batch.add(Normalize.from_stats([.5]*3, [.5]*3, cuda=False))
    with pytest.raises(ValueError, match='2 Normalize'): Views().setup(dls)

def test_forgotten_setup_is_found():
    with pytest.raises(ValueError, match=r'call views.setup\(dls\) first'): Views()((images()-MEAN)/STD)

# What is drawn

def test_every_sample_has_its_own():
    p = Views(p_jitter=1, p_blur=1, p_solarize=.5).draw(64, 64, 64)
    assert len(p.box.unique(dim=0))>60
    for t in (*p.colour[:4], p.sigma): assert len(t.unique())>60
    for t in (p.flip, p.colour[4], p.solarize): assert len(t.unique())==2
    x = images(1).expand(32,-1,-1,-1)
    a,b = Views(p_jitter=1)(x)
    assert not torch.allclose(a,b) and min((a[i]-a[j]).abs().mean() for i in range(32) for j in range(i))>1e-3

def test_samples_do_not_touch_each_other():
    x,v = images(),Views(p_solarize=.3)
    p = v.draw(len(x), 64, 64)
    y = x.clone(); y[2] = y[2].flip(0)
    a,b = v.apply(x,p),v.apply(y,p)
    same = [torch.equal(i,j) for i,j in zip(a,b)]
    assert same==[True,True,False,True,True,True]

def test_distributions():
    torch.manual_seed(0)
    v,n = Views(p_flip=.5, p_grey=.2, p_jitter=.8, p_blur=(.9,.1), scale=(.2,.6)),8000
    p,q = v.draw(n, 100, 100, 0),v.draw(n, 100, 100, 1)
    near = lambda t, want: abs(t.float().mean()-want)<.02
    assert near(p.flip, .5) and near(p.colour[4], .2) and near(p.colour[0]!=1, .8) and near(p.sigma>0, .9) and near(q.sigma>0, .1)
    assert near(p.colour[1], 1.) and p.colour[1].min()>=.6 and p.colour[1].max()<=1.4 and p.colour[3].abs().max()<=.1
    assert torch.equal(p.colour[0]!=1, p.colour[2]!=1)
    area = p.box[:,2]*p.box[:,3]/100**2
    assert area.min()>=.19 and area.max()<=.61 and near(area, .4)
    r = (p.box[:,3]/p.box[:,2]).log()
    assert near(r, 0) and abs(r.std()-.288*2*.2877)<.01
    assert (p.box[:,:2]>=0).all() and (p.box[:,:2]+p.box[:,2:]<=100).all()
    for k in (0,1): assert near(p.box[:,k]/(100-p.box[:,k+2]), .5)

def test_boxes_are_distributed_as_torchvisions():
    from torchvision.transforms.v2 import RandomResizedCrop
    torch.manual_seed(0)
    t,im = RandomResizedCrop(10, scale=(.08,1.), ratio=(.5,2.)),torch.zeros(3,60,90)
    ref = tensor([[d[k] for k in ('top','left','height','width')] for d in (t.make_params([im]) for _ in range(2000))]).float()
    box = rand_boxes(8000, 60, 90, (.08,1.), (.5,2.))
    for q in (.1,.5,.9): assert ((box.quantile(q,0)-ref.quantile(q,0)).abs()<=3).all(), q
    close(box.mean(0), ref.mean(0), 1.5)

def test_boxes_that_never_fit():
    assert rand_boxes(3, 20, 100, (.9,1.), (3/4,4/3)).tolist()==[[0.,36.,20.,27.]]*3
    assert rand_boxes(3, 100, 20, (.9,1.), (3/4,4/3)).tolist()==[[36.,0.,27.,20.]]*3

def test_seeded_runs_repeat():
    x,v = images(),Views(n_small=2, p_solarize=.2)
    torch.manual_seed(3); a = v(x)
    torch.manual_seed(3); b = v(x)
    c = v(x)
    assert all(torch.equal(i,j) for i,j in zip(a,b)) and not torch.equal(a[0],c[0]) and not torch.equal(a[0],a[1])

# Shapes and types

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtype(dtype):
    x,v = images(),normed(Views(p_solarize=0))
    p = v.draw(len(x), 64, 64)
    x = (x-MEAN)/STD
    out = v.apply(x.to(dtype), p)
    assert out.dtype==dtype and not out.requires_grad
    close(out.float(), v.apply(x, p), .03)

def test_same_under_autocast():
    x,v = images(),Views()
    p = v.draw(len(x), 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16): out = v.apply(x, p)
    assert torch.equal(out, v.apply(x, p))

def test_shapes_and_order():
    x = images(1, 40, 56)
    assert [tuple(v.shape) for v in Views(n=2, n_small=2)(x)]==[(1,3,40,56)]*2+[(1,3,16,32)]*2
    assert [tuple(v.shape) for v in Views(n=1, size=32, n_small=1, small_size=(8,12))(x)]==[(1,3,32,32),(1,3,8,12)]
    small = Views(n=1, n_small=1, scale=(.8,1.), small_scale=(.1,.1)).draw(9, 100, 100, 1).box
    close(small[:,2]*small[:,3], torch.full((9,), 1000.), 60)

def test_gradient_does_not_flow_and_input_is_kept():
    x = images().requires_grad_()
    was = x.detach().clone()
    assert not any(v.requires_grad for v in Views(p_solarize=.5)(x))
    assert torch.equal(x, was)

def test_channels_last_and_strided_input():
    x,v = images(),Views()
    p = v.draw(len(x), 64, 64)
    close(v.apply(x.to(memory_format=torch.channels_last), p), v.apply(x, p), 1e-5)
    close(v.apply(x.mT.contiguous().mT, p), v.apply(x, p), 1e-5)

def test_other_channel_counts():
    noc = dict(saturation=0, hue=0, p_grey=0)
    x = images()
    for c in (1,2): assert Views(**noc)(x[:,:c])[0].shape==(6,c,64,64)
    v = Views(**{**OFF, **noc, 'p_jitter':1, 'brightness':0})
    p = v.draw(6, 64, 64)
    for o,im,f in zip(v.apply(x[:,:1],p), x[:,:1], p.colour[1]): close(o, TF.adjust_contrast(im, float(f)), 1e-5)
    for k in noc: # what such images cannot have is left out, and said once
        v = Views(**{**noc, k:.4})
        with pytest.warns(UserWarning, match=f'1 channel, and {k} need RGB: views leave'): v(x[:,:1])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            v(x[:,:1])
    x5,v = torch.cat([x,2*x[:,:2]/2], 1),Views(**{**OFF, 'p_jitter':1, 'p_grey':1, 'brightness':0, 'contrast':0})
    with pytest.warns(UserWarning, match='5 channels, and saturation, hue, p_grey need'): close(v(x5)[0], x5, 1e-5)
    with pytest.raises(ValueError, match='4 channels, but'): normed(Views(**noc))(torch.rand(2,4,8,8))

def test_tiny_images():
    for s in (1,2,3): assert Views()(torch.rand(2,3,s,s))[0].isfinite().all()

def test_pickle():
    v = pickle.loads(pickle.dumps(normed(Views(hue=.2))))
    assert v.hue==.2 and v.mean==tuple(imagenet_stats[0])

# Bad input

@pytest.mark.parametrize('x,err,msg', [
    (torch.rand(3,8,8), ValueError, r'x\[None\]'), (torch.zeros(2,3,8,8).int(), TypeError, 'torch.int32; divide by 255'),
    ([torch.rand(2,3,8,8)], TypeError, 'got list'), (torch.rand(2,3,8,8)*2, ValueError, 'must be in 0-1')])
def test_bad_batch(x, err, msg):
    with pytest.raises(err, match=msg): Views()(x)

@pytest.mark.parametrize('k,val', [
    ('n',0), ('n',64), ('n',1.5), ('n_small',-1), ('size',0), ('size','64'), ('size',(3,4,5)), ('small_size',-3), ('scale',(0,1)), ('scale',(.2,1.5)),
    ('scale',(.8,.2)), ('scale',.5), ('small_scale',(-.1,.2)), ('ratio',(0,1)), ('p_flip',1.5), ('p_jitter',-.1), ('p_grey',2), ('p_blur',1.1),
    ('p_blur',(1,.1,.5)), ('p_solarize',(0,2)), ('p_solarize','x'), ('brightness',-.1), ('contrast',-1), ('saturation',-1), ('brightness',None),
    ('hue',.6), ('hue',-.1), ('sigma',(0,1)), ('sigma',(2,1)), ('blur_width',0), ('value_range',(1,0)), ('value_range',5), ('value_range',(1,1))])
def test_bad_settings(k, val):
    with pytest.raises(ValueError) as e: Views(**{k:val})
    assert str(e.value).startswith(f'{k} must be ') and f'{k}={val!r}' in str(e.value)

@pytest.mark.parametrize('kw,msg', [(dict(mean=(.5,)),'mean and std go together'), (dict(std=(.5,)),'mean and std go together'), (dict(mean=(.5,), std=(0,)),'std must be'),
    (dict(mean=(.5,)*3, std=(.5,)),'std must be'), (dict(mean=(float('nan'),), std=(1,)),'mean must be'), (dict(mean=.5, std=.5), 'mean must be')])
def test_bad_stats(kw, msg):
    with pytest.raises(ValueError, match=msg): Views(**kw)

# Patches

@pytest.mark.parametrize('h,w,n,overlap,side', [(32,32,3,.5,16), (31,45,4,.25,9), (30,30,7,.5,6), (100,100,7,.5,24), (33,33,3,0.,11), (32,32,3,0.,10), (20,20,1,.5,20), (32,32,1,.3,32)])
def test_patch_grid(h, w, n, overlap, side):
    x = images(2, h, w)
    ps = patch_grid(x, n, overlap)
    assert ps.shape==(2,n*n,3,side,side)
    steps = [(s-side)//max(n-1,1) for s in (h,w)]
    top,left = ((s-side-(n-1)*d)//2 for s,d in zip((h,w), steps))
    for i in range(n):
        for j in range(n):
            r,c = top+i*steps[0],left+j*steps[1]
            assert r>=0 and c>=0 and torch.equal(ps[:,i*n+j], x[:,:,r:r+side,c:c+side])

@pytest.mark.parametrize('overlap,apart', [(.5,2), (.75,4), (2/3,3), (0.,1)])
def test_patches_far_enough_apart_share_no_pixels(overlap, apart):
    for side in range(28, 321, 4):
        x = torch.arange(side*side).float().view(1,1,side,side)
        ps = patch_grid(x, 7, overlap)[0,:,0].flatten(1)
        for i in range(7-apart): assert not set(ps[7*i].tolist()) & set(ps[7*(i+apart)].tolist()) and not set(ps[i].tolist()) & set(ps[i+apart].tolist()), side

@pytest.mark.parametrize('n,overlap,msg', [(0,0.,'n must be'), (2.,0.,'n must be'), (3,1.,'overlap must be'), (3,-.1,'overlap must be'), (33,0.,'32×40 pixels are too small'), (30,.9,'lower n')])
def test_patch_grid_bad_input(n, overlap, msg):
    with pytest.raises(ValueError, match=msg): patch_grid(images(1, 32, 40), n, overlap)
    with pytest.raises(ValueError, match='bs, c, h, w'): patch_grid(images(1)[0], 3)

# Presets and pictures

def test_presets():
    v = simclr_views(32, strength=.5, n=3)
    assert (v.size,v.n,v.brightness,v.hue,v.scale)==(32,3,.4,.1,(.08,1.))
    p = weak_views().draw(4, 32, 32)
    assert p.colour is None and p.sigma is None and p.solarize is None
    assert weak_views(p_grey=1.).draw(4, 32, 32).colour[4].all()

@pytest.mark.parametrize('labels', [False, True])
def test_show_views(folder, labels):
    import matplotlib; matplotlib.use('Agg')
    dls,v = make_dls(folder, labels),Views(n=2, n_small=1)
    state = torch.get_rng_state()
    a,b = (show_views(dls, v, n_images=3, seed=1) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and v.mean is None
    pix = [[ax.images[0].get_array() for ax in f.axes] for f in (a,b)]
    assert len(pix[0])==3*4 and all((i==j).all() for i,j in zip(*pix))
    files = [tuple(Image.open(f).getpixel((20,18))) for f in get_image_files(folder)]
    for im in pix[0][::4]: assert min(abs(im[16,16]*255-tensor(f).numpy()).max() for f in files)<2
    assert len(show_views(dls, v, n_images=50).axes)==4*len(dls.train_ds)
    matplotlib.pyplot.close('all')

def test_a_loader_shared_among_processes_is_looked_through(folder):
    from fastai.distributed import DistributedDL
    from fastai_contrastive.stats import dls_stats, stats_of
    dls = make_dls(folder)
    dl = DistributedDL(dls.train, 0, 2)
    assert stats_of(dl)==dls_stats(dls) and Views().setup(dl).mean

# Two ways to one view: by matrices, and row by row

def by_matrices(v, x): return [v._by_matrices(x, v.draw(len(x), *x.shape[-2:], i), *v._scale(x)) for i in range(v.n+v.n_small)]

TWO_WAYS = {'plain':dict(), 'simclr':dict(scale=(.08,1.), brightness=.8, contrast=.8, saturation=.8, hue=.2, p_solarize=.3), 'whole':dict(scale=None),
    'small':dict(n_small=3, small_size=(10,14)), 'wide':dict(size=(24,40), p_blur=1.), 'up':dict(size=96), 'down':dict(size=9, p_blur=(1.,.3)),
    'one row':dict(size=(1,8)), 'weak':dict(p_jitter=0, p_grey=0), 'sharp':dict(p_blur=0), 'range':dict(value_range=(0.,.7), mean=(0.,), std=(1.,))}

@pytest.mark.parametrize('c', [1,3,5])
@pytest.mark.parametrize('kw', TWO_WAYS.values(), ids=TWO_WAYS)
def test_two_ways_to_one_view(kw, c):
    "Equal draws in equal order, and equal pixels, on random ones, but for one on solarize's threshold"
    x,v = torch.rand(7,c,48,64,generator=torch.Generator().manual_seed(0)),Views(**kw)
    v._said = True
    torch.manual_seed(2); a = v(x)
    torch.manual_seed(2); b = by_matrices(v, x)
    assert len(a)==len(b)
    for i,j in zip(a, b):
        assert i.shape==j.shape and i.is_contiguous()
        off = (i-j).abs()
        assert off.max()<1e-5 or v.p_solarize and (off<1e-5).float().mean()>.999, f'off by {off.max():.1e}'

@pytest.mark.parametrize('bs,step', [(1,1), (7,2), (7,3), (7,7)])
def test_pieces_are_the_whole(bs, step, monkeypatch):
    "However the batch is cut, each sample is the same to the bit"
    import fastai_contrastive.view_rows as rows
    x,v = images(bs)*(1+torch.arange(bs))[:,None,None,None],Views(n_small=1, p_solarize=.3, mean=(0,), std=(1,))
    torch.manual_seed(2); a = v(x)
    monkeypatch.setattr(rows, '_piece', step*x[0].numel())
    torch.manual_seed(2); b = v(x)
    assert all(torch.equal(i,j) for i,j in zip(a, b))

def test_views_that_are_drawn_in_unlike_ways():
    "One view without colour, one without blur: as ReSSL's, and by hand"
    x,v = images(),Views(n=3)
    ps = [v.draw(6, 64, 64, i) for i in range(3)]
    ps[0].colour = ps[1].sigma = None
    for o,p in zip(v._make(x, ps), ps): close(o, v._by_matrices(x, p, *v._scale(x)), 1e-5)

def test_views_keep_their_own_memory():
    a,b = Views()(images())
    assert a.untyped_storage().data_ptr()!=b.untyped_storage().data_ptr() and a.untyped_storage().nbytes()==a.numel()*4

def test_but_first_draws_and_leaves_out():
    x,v = images(),Views(n=2, n_small=1)
    torch.manual_seed(4); a,after = v(x),torch.rand(1)
    torch.manual_seed(4); b,then = v.but_first(x),torch.rand(1)
    assert torch.equal(after, then) and torch.equal(b[0], x) and all(torch.equal(i,j) for i,j in zip(a[1:], b[1:]))

@pytest.mark.parametrize('v', [Views(mean=(.5,)*3, std=(.2,)*3, n_small=2, p_solarize=.3), byol_views(), Views(scale=None)], ids=repr)
def test_nothing_is_read_back_from_a_gpu(v):
    "On a GPU that is not there: whatever reads a number, or meets a tensor of the processor, raises. Nothing fake stays"
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        out = v(torch.rand(4, 3, 32, 32, device='cuda'))
        assert all(o.device.type=='cuda' and len(o)==4 for o in out)
    assert all(type(o) is torch.Tensor and o.isfinite().all() for o in v.but(mean=None, std=None)(images()))

def test_a_subclass_has_its_say():
    "Its own `apply`, and its own call: for all views, and for those beside a shared one"
    x = images()
    class Brighter(Views):
        def apply(self, x, p, scale=None): return Views.apply(self, x, p, scale)+1
    class Twice(Views):
        def __call__(self, x): return [v*2 for v in Views.__call__(self, x)]
    torch.manual_seed(3); plain = Views(n=3)(x)
    for cls,f in ((Brighter,lambda v: v+1), (Twice,lambda v: v*2)):
        torch.manual_seed(3); got = cls(n=3)(x)
        torch.manual_seed(3); after_first = cls(n=3).but_first(x)
        for i in range(3): close(got[i], f(plain[i]), 1e-5)
        assert torch.equal(after_first[0], x) and all(torch.equal(a, b) for a,b in zip(after_first[1:], got[1:]))
