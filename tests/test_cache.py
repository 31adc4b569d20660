"Images decoded once: the same batches to the last bit, and nothing that looks finished and is not"
import errno, multiprocessing, os, pickle, random, signal, time
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive import cache, image_dl, images
from fastai_contrastive.cache import *
from fastai_contrastive.data import *
from fastai_contrastive.image_dl import *
from fastai_contrastive.passage import *
from fastai_contrastive.evaluation.sets import eval_dl

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def draw(path, n, sizes, ext='jpg', mode='RGB'):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng,(w,h) = np.random.default_rng(i),sizes[i%len(sizes)]
        im = Image.fromarray(rng.integers(0, 255, (6,6,3), dtype=np.uint8)).resize((w,h), Image.BICUBIC).convert(mode)
        im.save(path/f'{i}.{ext}')

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Wide, high, square and small ones, in folders of two classes"
    d = tmp_path_factory.mktemp('photos')
    for s,n in (('train',21),('val',9)):
        for c in 'ab': draw(d/s/c, n, [(90,64),(64,101),(70,70),(30,20),(49,33)])
    draw(d/'unsup', 9, [(64,64)])
    return d

def batches(dl, seed=3):
    "Everything that comes out, and the random state after it"
    set_seed(seed)
    dl.rng = random.Random(seed)
    return [b for b in dl],random.random(),torch.rand(1).item()

def same(a, b):
    (xs,*a),(ys,*b) = a,b
    assert a==b and len(xs)==len(ys) and len(xs)
    for x,y in zip(xs, ys):
        assert type(x) is type(y) and [type(o) for o in x]==[type(o) for o in y] and [o.dtype for o in x]==[o.dtype for o in y]
        assert all(torch.equal(o, p) and o.stride()==p.stride() for o,p in zip(x, y))

kinds = dict(unlabelled=(unlabeled_dls,{}), augmented=(labelled_dls,{}), labelled=(labelled_dls,dict(augment=False)),
    own=(labelled_dls,dict(item_tfms=FlipItem(.5))), few=(labelled_dls,dict(n_per_class=7, augment=False)),
    held=(labelled_dls,dict(valid_pct=.3)), batch=(unlabeled_dls,dict(batch_tfms=Hue(p=1.), before_batch=noop)))

@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('kind', kinds)
def test_the_same_batches(photos, tmp_path, kind, workers):
    f,kw = kinds[kind]
    kw = dict(size=32, bs=8, device='cpu', num_workers=workers, **kw)
    plain,cached = f(photos, **kw),f(photos, cache=tmp_path, **kw)
    for a,b in zip(plain.loaders, cached.loaders): same(batches(a), batches(b))
    assert all(o._way is not None for o in cached.loaders), 'no batch came from the cache'

@pytest.mark.parametrize('kind', [k for k in kinds if k not in ('own','batch')])
def test_the_same_batches_of_a_device(photos, tmp_path, monkeypatch, kind):
    "Squares are cut as Pillow cuts them, and drawn as ever"
    monkeypatch.setattr(cache, 'cache_folder', lambda: tmp_path)
    f,kw = kinds[kind]
    kw = dict(size=32, bs=8, device='cpu', **kw)
    plain,held = f(photos, num_workers=0, **kw),f(photos, cache='device', num_workers=2, **kw)
    monkeypatch.setattr(PixelCache, 'image', None)
    for a,b in zip(plain.loaders, held.loaders): same(batches(a), batches(b))

@pytest.mark.parametrize('size', [(61,48),(48,61),(200,33),(5,7),(1,1),(64,64)])
@pytest.mark.parametrize('s', [1,16,31,64])
def test_cut_like_pillow(size, s):
    im = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1],3), dtype=np.uint8))
    (w,h),flat = size,torch.tensor(np.array(im)).flatten()
    boxes = [(0,0,w,h),(w//3,h//4,w,h),(0,h//2,max(1,w//2),h)]
    at,dims = tensor([3*(y*w+x) for x,y,*_ in boxes]),tensor([[x2-x,y2-y] for x,y,x2,y2 in boxes])
    for i,b in enumerate(boxes):
        wh = dims[i].tolist()
        got = cut_and_resize(flat, at[i:i+1], tensor([w]), dims[i:i+1], s, wh, columns_first(*wh, s))
        assert torch.equal(got[0].permute(1,2,0), torch.tensor(np.array(im.crop(b).resize((s,s), Image.BILINEAR))))

def test_another_pillow(photos, tmp_path, monkeypatch):
    "Where it does not resize as this one does, squares are cut by it, one by one"
    monkeypatch.setattr(cache, 'cache_folder', lambda: tmp_path)
    monkeypatch.setattr(image_dl, 'columns_first', lambda *args: None)
    kw = dict(size=32, bs=8, device='cpu', num_workers=0)
    for a,b in zip(labelled_dls(photos, **kw).loaders, labelled_dls(photos, cache='device', **kw).loaders): same(batches(a), batches(b))

def test_squares_need_no_picture(synth, tmp_path, monkeypatch):
    "Drawn images are square: batches are read as they lie, one array, without a picture being made"
    kw = dict(size=32, bs=8, device='cpu', num_workers=0)
    plain,cached = unlabeled_dls(synth, **kw),unlabeled_dls(synth, cache=tmp_path, **kw)
    assert cached.train.cache.pixels.shape==(90,32,32,3)
    monkeypatch.setattr(PixelCache, 'image', None)
    monkeypatch.setattr(images, '_load', None)
    got = [batches(o) for o in cached.loaders]
    monkeypatch.undo()
    for a,b in zip(plain.loaders, got): same(batches(a), b)

@pytest.mark.parametrize('ext,mode,kw', [('png','L',{}), ('png','I;16',dict(value_range=(0,200))), ('png','P',{}), ('tif','F',dict(value_range=(0,255)))])
def test_other_kinds_of_files(tmp_path, ext, mode, kw):
    dtype = {'I;16':np.uint16, 'F':np.float32}.get(mode, np.uint8)
    for i in range(9):
        im = Image.fromarray(np.random.default_rng(i).integers(0, 200, (20,30)).astype(dtype))
        (im.convert('P') if mode=='P' else im).save(tmp_path/f'{i}.{ext}')
    kw = dict(size=16, bs=4, device='cpu', num_workers=0, **kw)
    for a,b in zip(unlabeled_dls(tmp_path, **kw).loaders, unlabeled_dls(tmp_path, cache=tmp_path/'c', **kw).loaders): same(batches(a), batches(b))

def test_used_again(photos, tmp_path, capsys, monkeypatch):
    "By labelled loaders of few and of many labels, and by evaluation, without a file being opened"
    kw = dict(size=32, bs=8, device='cpu', num_workers=0, augment=False, cache=tmp_path)
    labelled_dls(photos, **kw)
    assert 'decoded 60 images once' in capsys.readouterr().out
    few = labelled_dls(photos, n_per_class=3, seed=5, **kw)
    assert capsys.readouterr().out=='' and len(list(tmp_path.glob('*.pixels')))==1
    plain = labelled_dls(photos, n_per_class=3, seed=5, **{**kw, 'cache':False})
    want = [batches(eval_dl(plain, i, c)) for i in (0,1) for c in (None,'b')]
    few.one_batch()
    monkeypatch.setattr(images, '_load', None)
    got = [batches(eval_dl(few, i, c)) for i in (0,1) for c in (None,'b')]
    monkeypatch.undo()
    for a,b in zip(want, got): same(a, b)

def test_as_any_loader(photos, tmp_path):
    "Shown, asked for one batch, tested on new files, pickled, exported"
    kw = dict(size=32, bs=8, device='cpu', num_workers=0)
    plain,dls = labelled_dls(photos, **kw),labelled_dls(photos, cache=tmp_path/'c', **kw)
    dls.show_batch(max_n=2), dls.train.show_batch(max_n=2, unique=True)
    plt.close('all')
    assert dls.one_batch()[0].shape==(8,3,32,32)
    draw(tmp_path/'new/a', 3, [(40,50)])
    for fs in (image_files(tmp_path/'new'), plain.valid_ds.items[:5], plain.valid_ds.items[:2]+image_files(tmp_path/'new')):
        for w in (False,True): same(batches(plain.test_dl(fs, with_labels=w)), batches(dls.test_dl(fs, with_labels=w)))
    again = pickle.loads(pickle.dumps(dls))
    assert isinstance(again.train, ImageDL) and again.train.cache.path==dls.train.cache.path
    same(batches(plain.train), batches(again.train))
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(4), Flatten(), nn.Linear(48,2)), path=tmp_path)
    learn.export()
    remove_caches(tmp_path/'c')
    new = load_learner(tmp_path/'export.pkl')
    assert new.dls.valid.cache is None
    with learn.no_bar(), learn.no_logging(), new.no_bar(): assert torch.equal(new.predict(plain.valid_ds.items[0])[2], learn.predict(plain.valid_ds.items[0])[2])

@pytest.mark.parametrize('workers', [0,2])
def test_a_passage_that_goes_on(photos, tmp_path, workers):
    kw = dict(size=32, bs=4, device='cpu', num_workers=workers)
    whole,parts = [],[]
    for out,c in ((whole,False),(parts,tmp_path)):
        dl = labelled_dls(photos, cache=c, **kw).train
        set_seed(1)
        dl.rng = random.Random(2)
        p = Passage(dl)
        for i in range(len(dl)):
            if c and i==4:
                p = Passage(labelled_dls(photos, cache=c, **kw).train, p.state_dict())
            out.append(next(p))
    if workers: same((whole,), (parts,))
    else: same((whole[:4],), (parts[:4],)) # in one process the rest hangs on a random state that a run puts back

# Out of date, damaged, broken off

def made(files, folder, **kwargs):
    said = []
    return pixel_cache(files, folder, size=16, say=said.append, **kwargs),said

def test_what_is_not_true_any_more(tmp_path):
    draw(tmp_path, 6, [(20,20)])
    fs = image_files(tmp_path)
    c,said = made(fs, tmp_path/'c')
    assert len(said)==1 and made(fs, tmp_path/'c')[1]==[]
    t = os.stat(fs[2])
    os.utime(fs[2], ns=(t.st_atime_ns, t.st_mtime_ns+1))
    assert '1 file changed (2.jpg)' in made(fs, tmp_path/'c')[1][0]
    draw(tmp_path, 8, [(20,20)])
    assert '2 files added (6.jpg, ...)' in made(image_files(tmp_path), tmp_path/'c')[1][0]
    assert 'removed' in made(fs, tmp_path/'c')[1][0]
    assert made(fs[::-1], tmp_path/'c')[1]==[], 'in another order they are the same'
    assert len(list((tmp_path/'c').glob('*.pixels')))==1
    assert len({made(fs, tmp_path/'c', **kw)[0].path for kw in ({}, dict(square=16), dict(value_range=(0,255)), dict(asked='others'))})==4

def test_another_decoder(tmp_path, monkeypatch):
    draw(tmp_path, 3, [(20,20)])
    made(image_files(tmp_path), tmp_path/'c')
    monkeypatch.setattr(cache.PIL, '__version__', '1.0')
    assert 'pillow' in made(image_files(tmp_path), tmp_path/'c')[1][0]

@pytest.mark.parametrize('harm', ['cut','empty','index','longer'])
def test_damaged(tmp_path, harm):
    draw(tmp_path, 5, [(20,20)])
    c,_ = made(image_files(tmp_path), tmp_path/'c')
    b = bytearray(c.path.read_bytes())
    if harm=='index': b[-60] ^= 1
    c.path.write_bytes({'cut':b[:-100], 'empty':b'', 'index':b, 'longer':b+b'x'}[harm])
    with pytest.raises(ValueError, match='not whole|damaged'): PixelCache(c.path)
    new,said = made(image_files(tmp_path), tmp_path/'c')
    assert 'decoding the images again' in said[0] and len(new)==5

@pytest.mark.parametrize('when', ['pixels','index'])
def test_a_full_disk(tmp_path, monkeypatch, when):
    "It is said, with what to do; nothing is left, and an older cache stays what it was"
    draw(tmp_path, 5, [(20,20)])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def _full(*args): raise full
    if when=='index': monkeypatch.setattr(cache, '_write_end', _full)
    else:
        class Disk(io.FileIO):
            def write(self, b): return super().write(b) if self.tell()<2000 else _full()
        monkeypatch.setattr(cache, 'open', lambda p, m: Disk(p, m) if m=='wb' else open(p, m), raising=False)
    with pytest.raises(OSError, match='cannot write the cache .*No space left.* GB are free .*pass cache= another folder'):
        unlabeled_dls(tmp_path, 16, 2, cache=tmp_path/'c', num_workers=0)
    assert [o.suffix for o in (tmp_path/'c').iterdir()]==['.lock']
    monkeypatch.undo()
    assert len(unlabeled_dls(tmp_path, 16, 2, cache=tmp_path/'c', num_workers=0).train.cache)==5

def test_a_file_that_cannot_be_read(tmp_path):
    draw(tmp_path, 5, [(20,20)])
    (tmp_path/'2.jpg').write_bytes(b'none')
    with pytest.raises(OSError, match=r'cannot read image .*2.jpg: .*skip_bad=True'): unlabeled_dls(tmp_path, 16, 2, cache=tmp_path/'c', num_workers=0)
    assert not list((tmp_path/'c').glob('*pixels*'))
    with pytest.warns(UserWarning, match='left out 1 of 5'): dls = unlabeled_dls(tmp_path, 16, 2, cache=tmp_path/'c', num_workers=0, skip_bad=True)
    assert len(dls.train.cache)==4

def _building(folder, seconds, said=None):
    "A build that takes its time"
    load = cache._load
    cache._load = lambda *args: (time.sleep(seconds), load(*args))[1]
    _,lines = made(image_files(folder), folder/'c')
    if said is not None: said.put(lines)

def test_killed(tmp_path):
    draw(tmp_path, 20, [(20,20)])
    p = multiprocessing.get_context('fork').Process(target=_building, args=(tmp_path, .2))
    p.start()
    while not list((tmp_path/'c').glob('.*.pixels.*')): time.sleep(.02)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert not list((tmp_path/'c').glob('[!.]*.pixels')) and list((tmp_path/'c').glob('.*.pixels.*'))
    c,said = made(image_files(tmp_path), tmp_path/'c')
    assert len(c)==20 and len(said)==1 and not list((tmp_path/'c').glob('.*')), 'what was left is gone'

def test_two_at_once(tmp_path):
    "One decodes, the other finds it done"
    draw(tmp_path, 10, [(20,20)])
    ctx = multiprocessing.get_context('fork')
    q = ctx.Queue()
    ps = [ctx.Process(target=_building, args=(tmp_path, .03, q)) for _ in range(2)]
    for p in ps: p.start()
    said = [q.get(timeout=60) for _ in ps]
    for p in ps: p.join()
    assert sorted(map(len, said))==[0,1] and made(image_files(tmp_path), tmp_path/'c')[1]==[]

@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_by_processes(photos, start):
    fs = image_files(photos)
    f = partial(cache._decoded, size=32, value_range=None, square=32)
    pieces = [fs[i:i+7] for i in range(0, len(fs), 7)]
    assert list(cache._by_processes(f, pieces, 2, start))==[f(o) for o in pieces]

def test_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'cache_folder', lambda: tmp_path)
    f = partial(unlabeled_dls, photos, 32, 8, device='cpu', num_workers=0)
    for bad in (3, ['c'], ''):
        with pytest.raises((TypeError,ValueError), match='cache'): f(cache=bad)
    with pytest.raises(ValueError, match="cache='device' cuts whole batches.*pass cache=True"): f(cache='device', item_tfms=FlipItem())
    monkeypatch.setattr(image_dl, '_free', lambda d: 1000)
    with pytest.raises(ValueError, match=r"would take \d.\d\d GB of cpu, where 0.00 GB are free: pass cache=True"): f(cache='device')
