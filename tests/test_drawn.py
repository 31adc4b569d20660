"The drawn images: the same call writes the same bytes, nothing but shape tells the class, no folder is half done"
import hashlib
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive.drawn import *
from fastai_contrastive.images import image_files

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def tree_hash(path): return {str(f.relative_to(path)): hashlib.md5(f.read_bytes()).hexdigest() for f in sorted(path.rglob('*')) if f.is_file()}

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
    ta,tb = (synth_factors(tmp_path/o).set_index('file') for o in '12')
    assert ta.equals(tb.loc[ta.index])
    for o in ('synth.json','factors.csv'): a.pop(o)
    assert a.items() <= b.items()

# What the version of November 2026 drew, before there was a table: names and bytes of all images, and pixels
@pytest.mark.parametrize('want,kw', [('9a205071d19f88411ada0e7284060caf', dict(n_classes=12, n_train=2, n_unsup=5, n_valid=1, size=32)),
    ('e37715f027e9a525bcd9745612ae9ee1', dict(n_train=2, n_unsup=8, n_valid=2, size=64, seed=7))])
def test_bytes_stay_as_they_were(tmp_path, want, kw):
    h,path = hashlib.md5(),synth_images(tmp_path/'a', **kw)
    for f in sorted(path.rglob('*.jpg')): h.update(str(f.relative_to(path)).encode()+f.read_bytes())
    assert h.hexdigest()==want

def test_pixels_stay_as_they_were():
    ims = [np.asarray(draw_shape(c, np.random.default_rng(i), 48)).tobytes() for i in range(3) for c in synth_classes]
    assert hashlib.md5(b''.join(ims)).hexdigest()=='0a0801d2e91bda18f0bb60e71d7f9757'

def test_factors_are_those_of_the_images(synth):
    "Every image has its line; a plain ground has the colour that the table says, and nothing of the object lies outside its size"
    t = synth_factors(synth)
    assert sorted(t.file) == sorted(str(o.relative_to(synth)) for o in image_files(synth)) and not t.isna().to_numpy().any()
    for o in t[t.file.str.contains('/.*/')].itertuples(): assert Path(o.file).parent.name==o.shape
    plain = t[t.ground_texture=='plain']
    assert len(plain)>5
    ys,xs = (np.mgrid[:32,:32]+.5)/32
    for o in plain.itertuples():
        im = np.asarray(Image.open(synth/o.file), dtype=float)/255
        far = np.hypot(xs-o.x, ys-o.y)>1.7*o.size
        if far.sum()>100: assert np.abs(im[far].mean(0)-[o.ground_r,o.ground_g,o.ground_b]).max()<.02

def test_factors_of_the_object(tmp_path):
    "Where ground and object are plain and differ, the object's pixels lie about its place and have its colour"
    p = synth_images(tmp_path/'a', n_train=0, n_unsup=200, n_valid=0, size=48)
    t = synth_factors(p)
    t = t[(t.ground_texture=='plain') & (t.object_texture=='plain')]
    seen = 0
    for o in t.itertuples():
        im,g,c = np.asarray(Image.open(p/o.file), dtype=float)/255,[o.ground_r,o.ground_g,o.ground_b],[o.object_r,o.object_g,o.object_b]
        if np.abs(np.subtract(g, c)).sum()<.8: continue
        ys,xs = np.nonzero(np.abs(im-g).sum(2)>np.abs(im-c).sum(2))
        assert abs((xs.mean()+.5)/48-o.x)<.02 and abs((ys.mean()+.5)/48-o.y)<.02
        assert abs(len(xs)/(1.6*(48*o.size)**2*o.stretch_x*o.stretch_y)-1)<.1
        seen += 1
    assert seen>=2

def test_older_folder_gets_its_table(tmp_path):
    "The images are not touched; a table that is there is left alone"
    kw = dict(n_train=1, n_unsup=3, n_valid=1, size=32)
    p = synth_images(tmp_path/'a', **kw)
    was,times = tree_hash(p),{f: f.stat().st_mtime_ns for f in image_files(p)}
    (p/'factors.csv').unlink()
    with pytest.raises(FileNotFoundError, match=r'n_train=1, n_unsup=3, n_valid=1, size=32, seed=0\) adds it'): synth_factors(p)
    with pytest.raises(FileExistsError): synth_images(p, **{**kw, 'seed':1})
    assert not (p/'factors.csv').exists(), 'a call that is refused changes nothing'
    synth_images(p, **kw)
    assert tree_hash(p)==was and times=={f: f.stat().st_mtime_ns for f in image_files(p)}
    (p/'factors.csv').write_text('file\n')
    synth_images(p, **kw)
    assert (p/'factors.csv').read_text()=='file\n' and [o.name for o in tmp_path.iterdir()]==['a']

def test_table_is_whole_or_not_there(tmp_path, monkeypatch):
    from fastai_contrastive import drawn
    kw = dict(n_train=1, n_unsup=3, n_valid=1, size=32)
    p = synth_images(tmp_path/'a', **kw)
    (p/'factors.csv').unlink()
    before = set(p.iterdir())
    def breaks(self, f, **kw):
        Path(f).write_text('file,sha')
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(pd.DataFrame, 'to_csv', breaks)
        with pytest.raises(KeyboardInterrupt): synth_images(p, **kw)
        with pytest.raises(KeyboardInterrupt): synth_images(tmp_path/'b', **kw)
    assert set(p.iterdir())==before and [o.name for o in tmp_path.iterdir()]==['a']
    def refuses(*args): raise PermissionError('read-only')
    monkeypatch.setattr(drawn, '_write_factors', refuses)
    with pytest.warns(UserWarning, match='gets none'): assert synth_images(p, **kw)==p

def test_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'): synth_factors(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='nobody knows'): synth_factors(tmp_path)

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
    from fastai_contrastive import drawn
    areas = [drawn._paint([20*p+48 for p in drawn._unit_polys(c)], 96).sum() for c in synth_classes]
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
    (tmp_path/'photos').mkdir()
    for i in range(2): Image.new('RGB', (8,8)).save(tmp_path/f'photos/{i}.jpg')
    for overwrite in (False,True):
        with pytest.raises(FileExistsError, match='not written by synth_images'): synth_images(tmp_path/'photos', overwrite=overwrite)
    assert len((tmp_path/'photos').ls()) == 2

def test_half_done_never_has_the_name(tmp_path, monkeypatch):
    from fastai_contrastive import drawn
    done = []
    def breaks(*args):
        done.append(1)
        if len(done) == 7: raise KeyboardInterrupt
        return draw_shape(*args)
    monkeypatch.setattr(drawn, 'draw_shape', breaks)
    with pytest.raises(KeyboardInterrupt): synth_images(tmp_path/'a', size=32)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('n', [1,99])
def test_n_classes(tmp_path, n):
    with pytest.raises(ValueError, match=f'got {n}'): synth_images(tmp_path/'a', n_classes=n)

def test_every_name_is_still_in_data():
    "What other people's code imports from there, also by a star"
    from fastai_contrastive import data, drawn, images
    ns = {}
    exec('from fastai_contrastive.data import *', ns)
    for m in drawn,images:
        for k in m.__all__: assert ns[k] is getattr(m, k) is getattr(data, k)
    assert {'synth_dls','unlabeled_dls','labelled_dls','class_name','label_subset','wnid_names','imagewang_dls'} <= ns.keys()
