"Many paths in little memory: the same files in the same order as a list of objects would give"
import io, os, pickle, random, time, tracemalloc
from multiprocessing.reduction import ForkingPickler
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive import data, image_dl, images, paths
from fastai_contrastive.data import *
from fastai_contrastive.passage import *
from fastai_contrastive.paths import *
from fastai_contrastive.same_run import digest

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

@pytest.fixture
def compact(monkeypatch):
    "Lists are compact from two files on"
    for o in (paths, data, image_dl, images): monkeypatch.setattr(o, 'compact_from', 2)

def names(n, n_folders=100): return (f'photos/train/n{i%n_folders:08}/n{i%n_folders:08}_{i:08}.JPEG' for i in range(n))

def test_two_hundred_thousand():
    "Below a tenth of what objects take, in time that grows with their number, and sent by its memory"
    ts = []
    for n in (50_000,200_000)*2:
        t = time.perf_counter()
        ps = compact_paths(names(n))
        ts.append((time.perf_counter()-t)/n)
    assert ps.nbytes/len(ps)<40 and len(pickle.dumps(ps))/len(ps)<42
    assert min(ts[1::2])<3*min(ts[::2])
    assert ps[123_456]==Path('photos/train/n00000056/n00000056_00123456.JPEG')
    tracemalloc.start()
    part = ps[np.random.default_rng(0).permutation(len(ps))]
    ds = Datasets(part, [[noop]], splits=(slice(0,150_000),slice(150_000,200_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<200_000*100, f'{peak/200_000:.0f} bytes a file for choosing and data sets'
    dl = image_dl.ImageDL(ds.train, bs=8, shuffle=True, num_workers=0)
    idxs = dl.get_idxs()
    assert isinstance(idxs, ndarray) and idxs.nbytes==4*150_000 and np.array_equal(np.sort(idxs), np.arange(150_000))
    b = io.BytesIO()
    ForkingPickler(b, pickle.HIGHEST_PROTOCOL).dump(ps)
    assert len(b.getvalue())<5000, 'a process that is started anew gets the memory, not a copy'

@pytest.mark.parametrize('n', [1,2,6,21,100,1000,20_011])
def test_fastais_order(n):
    a,b = random.Random(n),random.Random(n)
    assert shuffled(a, n).tolist()==b.sample(list(range(n)), n) and a.random()==b.random()

def test_as_a_list():
    want = [Path(o) for o in names(50, 7)]+[Path('/a.jpg'),Path('b.jpg'),Path(os.fsdecode(b'caf\xe9/\xff.jpg')),Path('é/中.jpg')]
    ps = compact_paths(want)
    assert isinstance(ps, L) and list(ps)==want and len(ps)==54 and ps==want and L(want)==ps
    for i in (0, -1, slice(3,9), slice(None,None,-2), slice(9,3), [3,-2,3], [], np.array([5,1]), [o.suffix=='.jpg' for o in want], tensor([4,2]), range(5)):
        got,plain = ps[i],L(want)[i.tolist() if isinstance(i, (ndarray,Tensor)) else i]
        assert got==plain and (isinstance(got, Path) or isinstance(got, Paths))
    assert ps.map(str)==[str(o) for o in want] and ps.filter(lambda o: o.suffix=='.jpg')==want[50:]
    assert ps.sorted(key=str)==sorted(want, key=str) and ps+ps==want+want and ps+['x']==[*want,'x']
    assert want[3] in ps and Path('no') not in ps and list(reversed(ps))==want[::-1] and list(np.array(ps))==want
    assert pickle.loads(pickle.dumps(ps[2:5]))==want[2:5] and 'Path(' in repr(ps)
    for bad in (54,-55):
        with pytest.raises(IndexError, match=str(bad)): ps[bad]
    with pytest.raises(IndexError, match='54'): ps[[0,54]]
    with pytest.raises(TypeError, match='not changed in place'): ps[0] = 'x'
    with pytest.raises(AttributeError): ps.nothing

@pytest.mark.parametrize('plain', [True,False])
def test_listed_in_the_order_of_texts(tmp_path, monkeypatch, compact, plain):
    "Whatever stands before and after a slash, with many names in one folder and with few"
    rng = random.Random(1)
    chars = 'ab-./_A0' if plain else 'ab-./_A0é中'
    for i in range(300):
        o = ''.join(rng.choice(chars) for _ in range(rng.randint(1, 9))).strip('/.').replace('//', '/x/').replace('/.', '/')
        f = tmp_path/'t'/f'{o or "x"}{i}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.touch()
    (tmp_path/'t/many').mkdir()
    for i in range(1500): (tmp_path/'t/many'/f'{i}{"-"*(i%3)}.jpg').touch()
    (tmp_path/'t/many/12').mkdir(), (tmp_path/'t/many/12/a.jpg').touch()
    want = sorted((Path(d)/f for d,_,fs in os.walk(tmp_path/'t') for f in fs), key=str)
    want = [o for o in want if not any(p[0]=='.' for p in o.relative_to(tmp_path).parts)]
    got = image_files(tmp_path/'t')
    assert isinstance(got, Paths) and list(map(str, got))==list(map(str, want)) and len(got)>1700
    monkeypatch.chdir(tmp_path)
    assert [str(o) for o in image_files('t')]==[str(o.relative_to(tmp_path)) for o in want]

def batches(dl): return [[o.clone() for o in b] for b in dl]

@pytest.mark.parametrize('kind', ['unlabelled','all','labelled','few','held','many'])
def test_loaders_of_a_compact_list(synth, tmp_path, monkeypatch, kind):
    "The same split, labels, order and batches; orders are arrays, and sets are slices"
    f,kw = dict(unlabelled=(unlabeled_dls,{}), all=(unlabeled_dls,dict(valid_pct=0)), labelled=(labelled_dls,{}), few=(labelled_dls,dict(n_per_class=2)),
        held=(labelled_dls,dict(valid_pct=.3)), many=(labelled_dls,dict(cache=tmp_path)))[kind]
    def _make():
        set_seed(4)
        dls = f(synth, size=16, bs=8, num_workers=2*(kind=='labelled'), device='cpu', **kw)
        return dls,[list(o.dataset.items) for o in dls.loaders],digest(dls.train),[batches(o) for o in dls.loaders]
    _,items,crc,want = _make()
    for o in (paths, data, image_dl, images): monkeypatch.setattr(o, 'compact_from', 2)
    dls,items2,crc2,got = _make()
    assert isinstance(dls.train_ds.items, Paths) and isinstance(dls.train.get_idxs(), ndarray)
    assert items==items2 and crc==crc2
    for a,b in zip(sum(want, []), sum(got, [])):
        assert [type(o) for o in a]==[type(o) for o in b] and all(torch.equal(o, p) for o,p in zip(a, b))
    assert all(isinstance(o, slice) for o in dls.train_ds.splits)
    assert pickle.loads(pickle.dumps(dls.new_empty())).train is not None

def test_label_subset_of_many(synth, compact):
    fs = image_files(synth, 'train')
    assert isinstance(fs, Paths)
    i = label_subset(fs, n_per_class=2)
    assert list(i)==list(label_subset(L(list(fs)), n_per_class=2)) and isinstance(fs[i], Paths)
    assert Counter(o.parent.name for o in fs[i])=={c:2 for c in synth_classes[:10]}

def test_a_passage_through_many(synth, compact):
    dl = unlabeled_dls(synth, size=16, bs=8, num_workers=0, device='cpu').train
    p = Passage(dl)
    for _ in range(3): next(p)
    s = p.state_dict()
    want = [o[0] for o in p]
    said = []
    got = [o[0] for o in Passage(dl, s, say=said.append)]
    assert said==[] and len(got)==len(want) and all(torch.equal(a, b) for a,b in zip(got, want))
    assert s['crc'] and s['crc']!=Passage(dl).state_dict()['crc']
