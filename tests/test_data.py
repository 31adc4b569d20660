"The drawn images, opening files of every kind, and what may be seen with and without labels"
import hashlib, io, pickle, warnings
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive.data import *

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def tree_hash(path): return {str(f.relative_to(path)): hashlib.md5(f.read_bytes()).hexdigest() for f in sorted(path.rglob('*')) if f.is_file()}

def cpu(f, *args, **kwargs): return f(*args, num_workers=0, device='cpu', **kwargs)

def write_images(path, n, size=(40,50)):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size,3), dtype=np.uint8)).save(path/f'{i}.jpg')
    return path

@pytest.fixture
def good_and_bad(tmp_path):
    "Six good images, and one each that is corrupt, truncated, empty"
    p = write_images(tmp_path/'mixed', 6)
    (p/'corrupt.jpg').write_bytes(b'this is no image'*50)
    (p/'truncated.jpg').write_bytes((p/'0.jpg').read_bytes()[:-400])
    (p/'zero.png').write_bytes(b'')
    return p

bad_names = {'corrupt.jpg', 'truncated.jpg', 'zero.png'}

def test_same_call_same_bytes(tmp_path):
    kw = dict(n_classes=12, n_train=2, n_unsup=5, n_valid=1, size=32)
    a = tree_hash(synth_images(tmp_path/'a', **kw))
    np.random.seed(5); random.seed(5)
    assert a == tree_hash(synth_images(tmp_path/'b', **kw))
    c = tree_hash(synth_images(tmp_path/'c', seed=1, **kw))
    assert a.keys() == c.keys() and not set(a.values()) & set(c.values())
    assert len(set(a.values())) == len(a), 'no image is there twice'

def test_longer_begins_with_shorter(tmp_path):
    a,b = [tree_hash(synth_images(tmp_path/str(n), n_train=n, n_unsup=n, n_valid=n, size=32)) for n in (1,2)]
    a.pop('synth.json')
    assert a.items() <= b.items()

def test_drawing_leaves_global_random_state_alone(tmp_path):
    states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    s = states()
    synth_images(tmp_path/'a', n_train=1, n_unsup=1, n_valid=1, size=32)
    assert s == states()

def test_layout(synth):
    for d,n in ('train',4),('val',3):
        assert {o.name: len(o.ls()) for o in (synth/d).ls()} == {c:n for c in synth_classes[:10]}
    assert all(re.fullmatch(r'unsup_\d{5}\.jpg', o.name) for o in (synth/'unsup').ls()) and len((synth/'unsup').ls()) == 20
    im = Image.open(image_files(synth)[0])
    assert (im.size, im.mode, im.format) == ((32,32), 'RGB', 'JPEG')

def test_shapes_differ_and_have_one_area():
    ims = [np.asarray(draw_shape(c, np.random.default_rng(4), 64), dtype=float) for c in synth_classes]
    assert len(ims) >= 12
    assert all(np.abs(a-b).mean() > 1 for i,a in enumerate(ims) for b in ims[:i])
    from fastai_contrastive import data
    areas = [data._paint([20*p+48 for p in data._unit_polys(c)], 96).sum() for c in synth_classes]
    assert max(areas)/min(areas) < 1.05

def test_nothing_but_shape_tells_the_class():
    "Colours, texture, place: the corner pixels and the mean colour over 40 draws are the same for all classes"
    x = np.stack([[np.asarray(draw_shape(c, np.random.default_rng(i), 32), dtype=float) for i in range(40)] for c in synth_classes[:10]])
    assert (x[:,:,0,0] == x[:1,:,0,0]).all()
    means = x.mean((1,2,3))
    assert np.abs(means-means.mean(0)).max() < 3

def test_reuse_and_other_settings(tmp_path):
    kw = dict(n_train=1, n_unsup=1, n_valid=1, size=32)
    p = synth_images(tmp_path/'a', **kw)
    (p/'mine.txt').write_text('kept')
    assert synth_images(p, **kw) == p and (p/'mine.txt').exists()
    with pytest.raises(FileExistsError, match='n_train=1 there, 2 asked'): synth_images(p, **{**kw, 'n_train':2})
    synth_images(p, overwrite=True, **{**kw, 'n_train':2})
    assert len(image_files(p/'train')) == 20 and not (p/'mine.txt').exists()
    assert [o.name for o in tmp_path.iterdir()] == ['a'], 'nothing is left lying about'

def test_foreign_folder_is_never_replaced(tmp_path):
    write_images(tmp_path/'photos', 2)
    for overwrite in (False,True):
        with pytest.raises(FileExistsError, match='not written by synth_images'): synth_images(tmp_path/'photos', overwrite=overwrite)
    assert len((tmp_path/'photos').ls()) == 2

def test_half_done_never_has_the_name(tmp_path, monkeypatch):
    from fastai_contrastive import data
    done = []
    def breaks(*args):
        done.append(1)
        if len(done) == 7: raise KeyboardInterrupt
        return draw_shape(*args)
    monkeypatch.setattr(data, 'draw_shape', breaks)
    with pytest.raises(KeyboardInterrupt): synth_images(tmp_path/'a', size=32)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('n', [1,99])
def test_n_classes(tmp_path, n):
    with pytest.raises(ValueError, match=f'got {n}'): synth_images(tmp_path/'a', n_classes=n)

def test_image_files(tmp_path):
    p = write_images(tmp_path/'a'/'b', 3)
    (p/'note.txt').write_text('x'); (p/'.hidden.jpg').write_text('x')
    write_images(tmp_path/'c', 2)
    assert [o.name for o in image_files(tmp_path/'a')] == ['0.jpg', '1.jpg', '2.jpg']
    assert len(image_files(str(tmp_path))) == 5 and len(image_files(tmp_path, folders=['c'])) == 2
    assert image_files([tmp_path/'c', p/'2.jpg'])[-1] == p/'2.jpg'

def test_image_files_errors(tmp_path):
    (tmp_path/'empty').mkdir()
    write_images(tmp_path/'c', 1)
    for f in (image_files, partial(cpu, unlabeled_dls)):
        with pytest.raises(FileNotFoundError, match=r'no images in .*empty'): f(tmp_path/'empty')
        with pytest.raises(FileNotFoundError, match='no such folder: .*nowhere'): f(tmp_path/'nowhere')
        with pytest.raises(FileNotFoundError, match='no such folder: .*unsup'): f(tmp_path, folders=['c','unsup'])
        with pytest.raises(FileNotFoundError, match='list is empty'): f([])
    with pytest.raises(ValueError, match='needs a folder'): image_files([tmp_path/'c'], folders='c')

ramp = np.linspace(0, 1, 64*64).reshape(64,64)
grey = (ramp*255).astype(np.uint8)
rgb = Image.fromarray(np.stack([grey, grey[::-1], grey.T], -1))

def saved(im, path, **kwargs):
    im.save(path, **kwargs)
    return path

def palette_with_transparency(p):
    im = rgb.convert('P', palette=Image.Palette.ADAPTIVE, colors=16)
    return saved(im, p/'t.png', transparency=bytes([0]*8+[255]*8))

formats = {
    'grey':    lambda p: saved(Image.fromarray(grey), p/'a.png'),
    '1 bit':   lambda p: saved(Image.fromarray(grey).convert('1'), p/'a.png'),
    'RGBA':    lambda p: saved(rgb.convert('RGBA'), p/'a.png'),
    'LA':      lambda p: saved(Image.fromarray(grey).convert('LA'), p/'a.png'),
    'palette': lambda p: saved(rgb.convert('P'), p/'a.gif'),
    'palette+transparency': palette_with_transparency,
    'CMYK':    lambda p: saved(rgb.convert('CMYK'), p/'a.jpg', quality=95),
    '16 bit png':  lambda p: saved(Image.fromarray((ramp*65535).astype(np.uint16)), p/'a.png'),
    '16 bit tiff': lambda p: saved(Image.fromarray((ramp*65535).astype(np.uint16)), p/'a.tif'),
    '32 bit tiff': lambda p: saved(Image.fromarray((ramp*65535).astype(np.int32)), p/'a.tif'),
    'float tiff':  lambda p: saved(Image.fromarray(ramp.astype(np.float32)), p/'a.tif'),
    'grey jpeg':   lambda p: saved(Image.fromarray(grey), p/'a.jpg', quality=95),
    'webp':        lambda p: saved(rgb, p/'a.webp', lossless=True),
}

@pytest.mark.parametrize('fmt', formats)
def test_formats(tmp_path, fmt):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        im = load_rgb(formats[fmt](tmp_path))
    assert isinstance(im, PILImage) and im.mode == 'RGB' and im.size == (64,64)
    x = np.asarray(im).astype(float)
    if 'RGB' in fmt or 'CMYK' in fmt or 'palette' in fmt or fmt == 'webp': assert np.abs(x-np.asarray(rgb)).mean() < 25
    elif fmt != '1 bit': assert np.abs(x-grey[...,None]).mean() < 2
    dls = cpu(unlabeled_dls, tmp_path, size=16, bs=2)
    assert dls.one_batch()[0].shape == (1,3,16,16)

def test_big_endian_and_mid_values():
    a = np.array([[0,257,32896,65535]], dtype=np.uint16)
    buf = io.BytesIO()
    Image.frombytes('I;16B', (4,1), a.astype('>u2').tobytes()).save(buf, 'TIFF')
    assert np.asarray(load_rgb(buf.getvalue()))[0,:,0].tolist() == [0,1,128,255]

@pytest.mark.parametrize('size,least', [(None,400),(200,200),(150,200),(100,100),(60,100),(10,50)])
def test_draft_never_below_size(tmp_path, size, least):
    rgb.resize((600,400)).save(tmp_path/'a.jpg')
    assert min(load_rgb(tmp_path/'a.jpg', size).size) == least

def test_load_rgb_takes_what_fastai_takes(tmp_path):
    f = saved(rgb, tmp_path/'a.png')
    a = np.array(rgb)
    for o in (f, str(f), f.read_bytes(), rgb, a, tensor(a), PILImage.create(f)): assert (np.asarray(load_rgb(o)) == a).all()
    assert load_rgb(rgb.convert('CMYK')).mode == 'RGB'
    assert (np.asarray(load_rgb(Image.open(f))) == a).all() and type(rgb) is Image.Image, 'opened, not yet read; and left as it was'

@pytest.mark.parametrize('name', sorted(bad_names))
def test_bad_file_is_named(good_and_bad, name):
    with pytest.raises(OSError, match=f'cannot read image .*{name}'): load_rgb(good_and_bad/name)
    files = [good_and_bad/f'{i}.jpg' for i in range(6)]+[good_and_bad/name]
    with pytest.raises(OSError, match=name):
        for _ in cpu(unlabeled_dls, files, size=16, bs=2, valid_pct=0, drop_last=False).train: pass
    with pytest.raises(OSError, match='gone.jpg'): load_rgb(good_and_bad/'gone.jpg')

def test_bad_file_is_named_by_a_worker(good_and_bad):
    files = [good_and_bad/f'{i}.jpg' for i in range(6)]+[good_and_bad/'zero.png']
    with pytest.raises(OSError, match='zero.png'):
        dls = unlabeled_dls(files, size=16, bs=2, valid_pct=0, drop_last=False, num_workers=1, device='cpu')
        for _ in dls.train: pass

def test_skip_bad(good_and_bad):
    bad = bad_images(image_files(good_and_bad), pbar=False)
    assert {o.name for o in bad} == bad_names and all(bad.values())
    with pytest.warns(UserWarning, match='left out 3 of 9') as w: dls = cpu(unlabeled_dls, good_and_bad, size=16, bs=2, skip_bad=True)
    assert all(n in str(w[0].message) for n in bad_names)
    assert {o.name for o in dls.train_ds.items+dls.valid_ds.items} == {f'{i}.jpg' for i in range(6)}
    for _ in dls.train: pass
    with pytest.raises(OSError, match='none of the 2 images'): unlabeled_dls([good_and_bad/'zero.png', good_and_bad/'corrupt.jpg'], skip_bad=True)

def test_skip_bad_labelled(tmp_path):
    for d in ('train','val'):
        for c in 'ab': write_images(tmp_path/d/c, 2)
    (tmp_path/'train/a/zero.jpg').write_bytes(b'')
    with pytest.warns(UserWarning, match='zero.jpg'): dls = cpu(labelled_dls, tmp_path, size=16, bs=2, skip_bad=True)
    assert len(dls.train_ds) == 4

def test_unlabelled_batches(synth):
    dls = cpu(unlabeled_dls, synth, size=32, bs=8)
    b = dls.one_batch()
    assert isinstance(b, tuple) and len(b) == 1 and type(b[0]) is TensorImage and b[0].shape == (8,3,32,32) and b[0].dtype == torch.float32
    assert dls.n_inp == 1 and len(dls.train_ds)+len(dls.valid_ds) == 90 and len(dls.valid_ds) == 4
    assert any(isinstance(o, Normalize) for o in dls.after_batch.fs)
    seen = [tuple(dls.train.get_idxs()[:5])]
    dls.train.randomize()
    assert seen[0] != tuple(dls.train.get_idxs()[:5]), 'training is shuffled'

def test_normalised_pixels(synth):
    "A validation batch is the file's pixels, normalised: nothing is cropped from a square of the right size"
    dls = cpu(unlabeled_dls, synth, size=32, bs=4)
    x, = next(iter(dls.valid))
    want = torch.stack([tensor(np.asarray(Image.open(f))).permute(2,0,1)/255. for f in dls.valid_ds.items])
    m,s = [tensor(o)[:,None,None] for o in imagenet_stats]
    torch.testing.assert_close(x.as_subclass(Tensor), (want-m)/s)
    x, = next(iter(cpu(unlabeled_dls, synth, size=32, bs=4, norm=None).valid))
    torch.testing.assert_close(x.as_subclass(Tensor), want)

def test_crop_is_central_in_validation_and_random_in_training(tmp_path):
    a = np.zeros((20,60,3), dtype=np.uint8); a[:,20:40] = 255
    saved(Image.fromarray(a), tmp_path/'a.png')
    dls = cpu(unlabeled_dls, [tmp_path/'a.png'], size=20, bs=1, norm=None)
    assert (dls.valid.one_batch()[0] == 1).all()
    assert len({float(dls.train.one_batch()[0].mean()) for _ in range(8)}) > 3

def test_augment(synth):
    def draws(**kw): return torch.stack([next(iter(dls.train))[0][0] for dls in [cpu(labelled_dls, synth, size=32, bs=40, shuffle=False, **kw)] for _ in range(3)])
    x = draws()
    assert not torch.equal(x[0], x[1])
    x = draws(augment=False)
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])

@pytest.mark.parametrize('n', [1,2,3,5])
def test_tiny_sets(tmp_path, n):
    p = write_images(tmp_path/'a', n)
    dls = cpu(unlabeled_dls, p, size=16, bs=4)
    got = [len(b[0]) for b in dls.train]
    assert got == ([n-1] if n>1 else [1]), 'a partial batch, not an empty epoch'
    assert [len(b[0]) for b in dls.valid] == [1]

def test_drop_last_as_fastai(synth):
    assert [len(b[0]) for b in cpu(unlabeled_dls, synth, size=16, bs=20).train] == [20]*4

def test_valid_split(synth):
    f = lambda **kw: (lambda d: (set(d.train_ds.items), set(d.valid_ds.items)))(cpu(unlabeled_dls, synth, size=16, bs=8, **kw))
    tr,va = f()
    assert not tr & va and (tr,va) == f() and va != f(seed=1)[1]
    tr,va = f(valid_pct=0)
    assert len(tr) == 90 and len(va) == 8 and va < tr
    with pytest.raises(ValueError, match='got 1.5'): f(valid_pct=1.5)

def test_unknown_argument(synth):
    with pytest.raises(TypeError, match='sizee'): cpu(unlabeled_dls, synth, sizee=3)
    cpu(labelled_dls, synth, size=16, bs=8, val_bs=16, pin_memory=False, shuffle=True, n=8)

def test_labelled(synth):
    dls = cpu(labelled_dls, synth, size=32, bs=8)
    x,y = dls.one_batch()
    assert x.shape == (8,3,32,32) and type(y) is TensorCategory
    assert list(dls.vocab) == synth_classes[:10] and dls.c == 10 and len(dls.train_ds) == 40 and len(dls.valid_ds) == 30
    for ds in dls.train_ds,dls.valid_ds:
        assert [dls.vocab[ds[i][1]] for i in range(0, len(ds), 7)] == [o.parent.name for o in ds.items[::7]]

def test_labelled_errors(synth, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no folder valid in .* which has train, unsup, val'): labelled_dls(synth, valid='valid')
    with pytest.raises(FileNotFoundError, match='missing itself'): labelled_dls(tmp_path/'none')
    write_images(tmp_path/'train/a', 1), write_images(tmp_path/'val/b', 1)
    with pytest.raises(ValueError, match='classes that .*train has not: b'): labelled_dls(tmp_path)
    write_images(tmp_path/'flat', 1)
    with pytest.raises(ValueError, match='flat holds images without labels'): labelled_dls(tmp_path, train='flat')

def test_label_subset_is_stratified_and_seeded():
    y = ['a']*100+['b']*10+['c']*3
    i = label_subset(y, pct=.1)
    assert Counter(L(y)[i]) == {'a':10, 'b':1, 'c':1}
    assert i == label_subset(y, pct=.1) and i != label_subset(y, pct=.1, seed=1)
    assert set(i) <= set(label_subset(y, pct=.3)), 'fewer labels are among more labels'
    assert Counter(L(y)[label_subset(y, n_per_class=3)]) == {'a':3, 'b':3, 'c':3}
    s = np.random.get_state()[1].tolist()
    label_subset(y, pct=.5)
    assert s == np.random.get_state()[1].tolist()
    for kw,msg in (({}, 'one of'), (dict(pct=.1, n_per_class=1), 'one of'), (dict(pct=0), 'got 0'), (dict(pct=10), 'got 10'),
                   (dict(n_per_class=0), 'got 0'), (dict(n_per_class=4), 'class c has 3')):
        with pytest.raises(ValueError, match=msg): label_subset(y, **kw)

def test_subset_leaves_validation_and_vocab(synth):
    dls = cpu(labelled_dls, synth, size=16, bs=8, pct=.25)
    assert Counter(o.parent.name for o in dls.train_ds.items) == {c:1 for c in synth_classes[:10]}
    assert len(dls.valid_ds) == 30 and list(dls.vocab) == synth_classes[:10]
    assert list(dls.train_ds.items) == list(cpu(labelled_dls, synth, size=16, bs=8, pct=.25).train_ds.items)

def test_unsup_has_no_labels(synth):
    unsup = image_files(synth, 'unsup')
    labelled = cpu(labelled_dls, synth, size=16, bs=8)
    assert not set(unsup) & set(labelled.train_ds.items+labelled.valid_ds.items)
    for f in (lambda: labelled_dls(synth, train='unsup'), lambda: labelled_dls(synth, valid='unsup'), lambda: imagewang_dls(synth, train='unsup'),
              lambda: label_subset(unsup, pct=.1), lambda: class_name(unsup[0]), lambda: labelled.test_dl(unsup, with_labels=True, num_workers=0).one_batch()):
        with pytest.raises(ValueError, match='unsup holds images without labels'): f()
    dls = cpu(imagewang_pretrain_dls, synth, size=16, bs=8)
    assert set(unsup) < set(dls.train_ds.items+dls.valid_ds.items)
    assert len(dls.train_ds[0]) == 1 and len(dls.one_batch()) == 1 and not hasattr(dls, 'vocab')

def test_unsup_with_class_folders_is_refused_too(tmp_path):
    for d in ('unsup','val'): write_images(tmp_path/d/'a', 1)
    with pytest.raises(ValueError, match='without labels'): labelled_dls(tmp_path, train='unsup')

def test_pretrain_sees_val_only_when_asked(synth):
    tops = lambda dls: Counter(o.relative_to(synth).parts[0] for o in dls.train_ds.items+dls.valid_ds.items)
    assert tops(cpu(imagewang_pretrain_dls, synth, size=16)) == dict(train=40, unsup=20)
    assert tops(cpu(imagewang_pretrain_dls, synth, size=16, with_val=True)) == dict(train=40, unsup=20, val=30)

def test_synth_dls(synth):
    x,y = synth_dls(synth, size=32, bs=8, device='cpu').one_batch()
    assert x.shape == (8,3,32,32) and len(y) == 8
    assert len(synth_dls(synth, n=20, device='cpu').train_ds) == 20
    u = synth_dls(synth, labelled=False, n=12, device='cpu')
    assert len(u.train_ds)+len(u.valid_ds) == 12 and u.path == synth
    assert {o.relative_to(synth).parts[0] for o in u.train_ds.items} <= {'train','unsup'}

@pytest.mark.parametrize('labelled', [True,False])
def test_show_export_and_new(synth, labelled):
    dls = synth_dls(synth, size=32, bs=8, labelled=labelled, device='cpu')
    dls.show_batch(max_n=4)
    assert sum(len(a.images) for a in plt.gcf().axes) == 4
    plt.close('all')
    new = pickle.loads(pickle.dumps(dls.new_empty()))
    b = new.test_dl(dls.valid_ds.items[:3], num_workers=0).one_batch()
    torch.testing.assert_close(b[0], next(iter(dls.valid))[0][:3])

def test_learner_predicts_and_exports(synth, tmp_path):
    dls = synth_dls(synth, size=32, bs=8, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(4), Flatten(), nn.Linear(48,10)), metrics=accuracy, path=tmp_path)
    f = dls.valid_ds.items[0]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.tta(n=1)
        learn.export()
        want = learn.predict(f)[2]
        new = load_learner(tmp_path/'export.pkl')
        with new.no_bar():
            for o in (f, f.read_bytes(), np.array(Image.open(f)), Image.open(f)): torch.testing.assert_close(new.predict(o)[2], want)

def test_imagewang_official_counts(real):
    p = real('imagewang-160')
    dls = imagewang_dls(p, size=64, num_workers=0, device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds), len(dls.vocab)) == (14669, 3929, 20)
    assert set(dls.vocab) == set(wnid_names.values())
    assert len({class_name(o) for o in dls.valid_ds.items}) == 10
    dls = imagewang_pretrain_dls(p, size=64, num_workers=0, device='cpu')
    assert len(dls.train_ds)+len(dls.valid_ds) == 14669+7750
    assert len(image_files(p, ['train','unsup','val'])) == 14669+7750+3929

@pytest.mark.parametrize('f,name,n', [(imagenette_dls,'imagenette2-160',(9469,3925)), (imagewoof_dls,'imagewoof2-160',(9025,3929))])
def test_official_splits_by_url(real, f, name, n):
    real(name)
    dls = f(size=64, num_workers=0, device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c) == (*n, 10) and dls.path.name == name
    assert len(f(size=64, pct=.1, num_workers=0, device='cpu').train_ds) == pytest.approx(n[0]/10, abs=5)

@pytest.mark.parametrize('size,url', [(160,'imagenette2-160'),(161,'imagenette2-320'),(321,'imagenette2')])
def test_resolution(monkeypatch, size, url):
    from fastai_contrastive import data
    monkeypatch.setattr(data, 'untar_data', lambda u: u)
    assert Path(data._get_data('IMAGENETTE', size)).name == f'{url}.tgz'
