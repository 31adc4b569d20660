"What may be seen with labels and without, from which folders; and loaders that always have a batch"
import forked, inspect, pickle, shutil, textwrap, warnings
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive.data import *

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def cpu(f, *args, **kwargs): return f(*args, num_workers=0, device='cpu', **kwargs)

def write_images(path, n, size=(40,50)):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size,3), dtype=np.uint8)).save(path/f'{i}.jpg')
    return path

def saved(im, path, **kwargs):
    im.save(path, **kwargs)
    return path

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

# Which folders, which classes

def layout(path, *dirs, n=2):
    "`n` images in each of `dirs`, which may be grouped as in `'train/{cat,dog}'`"
    for o in dirs:
        d,_,cs = o.partition('{')
        for c in cs.rstrip('}').split(','): write_images(path/(d+c), n)
    return path

@pytest.mark.parametrize('valid', ['val','valid'])
def test_val_or_valid(tmp_path, valid):
    layout(tmp_path, 'train/{a,b}', f'{valid}/{{a,b}}', 'test/{a,b,c}')
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2)
    assert {o.parent.parent.name for o in dls.valid_ds.items} == {valid} and dls.vocab == ['a','b']
    seen = lambda **kw: {o.relative_to(tmp_path).parts[0] for ds in [cpu(imagewang_pretrain_dls, tmp_path, size=16, bs=2, **kw)] for o in ds.train_ds.items+ds.valid_ds.items}
    (tmp_path/'unsup').mkdir(), saved(Image.new('RGB', (9,9)), tmp_path/'unsup/a.png')
    assert seen() == {'train','unsup'} and seen(with_val=True) == {'train','unsup',valid}

def test_val_and_valid(tmp_path):
    layout(tmp_path, 'train/{a,b}', 'val/{a,b}', 'valid/{a}')
    with pytest.raises(ValueError, match='has both val and valid: say which .* by valid='): labelled_dls(tmp_path)
    with pytest.raises(ValueError, match='has both val and valid'): imagewang_pretrain_dls(tmp_path, with_val=True, folders=None)
    assert len(cpu(labelled_dls, tmp_path, size=16, bs=2, valid='valid').valid_ds) == 2

def test_neither_is_there(tmp_path):
    layout(tmp_path, 'train/{a,b}', 'test/{a,b}')
    with pytest.raises(FileNotFoundError, match=r'no folder val or valid in .* which has test, train; .*valid=.*valid_pct'): labelled_dls(tmp_path)
    assert len(cpu(labelled_dls, tmp_path, size=16, bs=2, valid='test').valid_ds) == 4

def test_class_folders_alone(tmp_path):
    layout(tmp_path, '{a,b,c}', n=10)
    layout(tmp_path, '{d}', n=1)
    with pytest.raises(FileNotFoundError, match=r'no folder train in .* which has a, b, c, d; .*valid_pct=.2'): labelled_dls(tmp_path)
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2, valid_pct=.2)
    tr,va = [Counter(o.parent.name for o in ds.items) for ds in (dls.train_ds,dls.valid_ds)]
    assert tr == dict(a=8, b=8, c=8, d=1) and va == dict(a=2, b=2, c=2), 'of each class its share; one image is for training'
    assert not set(dls.train_ds.items) & set(dls.valid_ds.items)
    assert [dls.vocab[ds[i][1]] for ds in (dls.train_ds,dls.valid_ds) for i in (0,-1)] == ['a','d','a','c']
    again = cpu(labelled_dls, tmp_path, size=16, bs=2, valid_pct=.2, n_per_class=1)
    assert list(again.valid_ds.items) == list(dls.valid_ds.items) and len(again.train_ds) == 4
    assert list(cpu(labelled_dls, tmp_path, size=16, bs=2, valid_pct=.2, seed=1).valid_ds.items) != list(dls.valid_ds.items)

def test_share_of_the_training_folder(tmp_path):
    layout(tmp_path, 'train/{a,b}', 'val/{a,b}', n=10)
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2, valid_pct=.3)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (14,6) and {o.parent.parent.name for o in dls.valid_ds.items} == {'train'}
    for bad in (0, 1, 1.5, -.1):
        with pytest.raises(ValueError, match=f'got {bad}'): labelled_dls(tmp_path, valid_pct=bad)
    with pytest.raises(ValueError, match='one of valid and valid_pct'): labelled_dls(tmp_path, valid='val', valid_pct=.2)
    with pytest.raises(FileNotFoundError, match='no folder training in'): labelled_dls(tmp_path, train='training', valid_pct=.2)
    with pytest.raises(FileNotFoundError, match='missing itself'): labelled_dls(tmp_path/'none', valid_pct=.2)

def test_deeper_folders_are_in_doubt(tmp_path):
    layout(tmp_path, 'train/cat/{batch1,batch2}', 'train/dog/{batch1}', 'val/{cat,dog}')
    with pytest.raises(ValueError, match=r"cat/batch1/0.jpg cat, the folder below .*train, or batch1, its own\? Say class_from='top' or class_from='parent'"):
        labelled_dls(tmp_path)
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2, class_from='top')
    assert dls.vocab == ['cat','dog'] and len(dls.train_ds) == 6
    for ds in dls.train_ds,dls.valid_ds:
        for i,o in enumerate(ds.items): assert dls.vocab[ds[i][1]] == ('cat' if 'cat' in o.parts else 'dog')
    assert Counter('cat' in o.parts for o in cpu(labelled_dls, tmp_path, size=16, bs=2, class_from='top', n_per_class=1).train_ds.items) == {True:1, False:1}
    with pytest.raises(ValueError, match='classes that .*train has not: cat, dog'): labelled_dls(tmp_path, class_from='parent')
    with pytest.raises(ValueError, match="got 'dir'"): labelled_dls(tmp_path, class_from='dir')
    with pytest.raises(ValueError, match='label_subset|Give labels instead'): label_subset(image_files(tmp_path/'train'), pct=.5)
    files = image_files(tmp_path/'train')
    assert len(label_subset([class_name(o, tmp_path/'train') for o in files], n_per_class=1)) == 2
    assert len(label_subset(image_files(tmp_path/'val'), n_per_class=1)) == 2

def test_deeper_validation_folders(tmp_path):
    layout(tmp_path, 'train/{cat,dog}', 'val/cat/{x}', 'val/{dog}')
    with pytest.raises(ValueError, match='val/cat/x/0.jpg cat, the folder below'): labelled_dls(tmp_path)
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2, class_from='top')
    assert [dls.vocab[dls.valid_ds[i][1]] for i in range(4)] == ['cat','cat','dog','dog']
    b = dls.test_dl(image_files(tmp_path/'val'), with_labels=True, num_workers=0).one_batch()
    assert b[1].tolist() == [0,0]
    with pytest.raises(ValueError, match='is not below'): dls.test_dl(image_files(layout(tmp_path/'far', '{cat}')), with_labels=True, num_workers=0).one_batch()

def test_classes_by_their_own_folder(tmp_path):
    layout(tmp_path, 'train/pets/{cat,dog}', 'train/farm/{cow,cat}', 'val/{cat,cow,dog}')
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2, class_from='parent')
    assert dls.vocab == ['cat','cow','dog'] and len(dls.train_ds) == 8
    assert all(dls.vocab[dls.train_ds[i][1]] == o.parent.name for i,o in enumerate(dls.train_ds.items))

def test_subset_of_paths(tmp_path):
    layout(tmp_path, 'train/{a,b}', 'val/{a,b}', n=4)
    both = image_files(tmp_path)
    assert Counter(o.parent.name for o in both[label_subset(both, n_per_class=2)]) == dict(a=2, b=2), 'both sets together'
    assert label_subset([str(o) for o in both], n_per_class=2) == label_subset(both, n_per_class=2), 'not each path a class of its own'

@pytest.mark.parametrize('where', ['train/unsup','train/cat/unsup','train/unsup/deep','val/unsup'])
@pytest.mark.parametrize('class_from', [None,'top','parent'])
def test_unsup_below(tmp_path, where, class_from):
    layout(tmp_path, 'train/{cat,dog}', 'val/{cat,dog}', where.replace('unsup', '{unsup}') if where.endswith('unsup') else 'train/unsup/{deep}')
    with pytest.raises(ValueError, match='holds images without labels' if class_from or not where.count('/')>1 else 'without labels|class_from'):
        labelled_dls(tmp_path, class_from=class_from)

def test_images_directly_in_train(tmp_path):
    layout(tmp_path, 'train/{cat,dog}', 'val/{cat,dog}')
    saved(Image.new('RGB', (9,9)), tmp_path/'train/loose.png')
    for kw in ({}, dict(class_from='top'), dict(class_from='parent')):
        with pytest.raises(ValueError, match=r'train holds images without labels \(loose.png is in no class folder\)'): labelled_dls(tmp_path, **kw)

def test_names_that_are_one_class(tmp_path):
    layout(tmp_path, 'train/{n02102040,English springer,n01440764}', 'val/{n02102040,tench}')
    with pytest.raises(ValueError, match='English springer and n02102040, in .*train, are one class by two names'): labelled_dls(tmp_path)
    shutil.rmtree(tmp_path/'train/English springer')
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2)
    assert dls.vocab == ['tench','English springer'] and {dls.vocab[dls.valid_ds[i][1]] for i in range(4)} == {'tench','English springer'}

def test_names_that_differ_in_case(tmp_path):
    layout(tmp_path, 'train/{Cat,dog}', 'val/{cat,dog}')
    with pytest.raises(ValueError, match=r'has not: cat \(there is Cat, in other case\)'): labelled_dls(tmp_path)
    layout(tmp_path, 'train/{cat}')
    if len((tmp_path/'train').ls())<3: pytest.skip('this disk does not tell case')
    with pytest.warns(UserWarning, match='Cat and cat, in .*train, differ only in case'): dls = cpu(labelled_dls, tmp_path, size=16, bs=2)
    assert dls.vocab == ['Cat','cat','dog']

def test_empty_class_folders(tmp_path):
    layout(tmp_path, 'train/{a,b,c}', 'val/{a,b,c}')
    shutil.rmtree(tmp_path/'val/b'), (tmp_path/'val/b').mkdir()
    with pytest.warns(UserWarning, match='no images of class b in .*val: it is not validated'): cpu(labelled_dls, tmp_path, size=16, bs=2)
    shutil.rmtree(tmp_path/'train/b'), (tmp_path/'train/b/none').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images of class b in .*train: fill'): labelled_dls(tmp_path)

def test_hidden_folders_are_no_classes(tmp_path):
    layout(tmp_path, 'train/{a,b,.ipynb_checkpoints}', 'train/a/{.ipynb_checkpoints}', 'train/__MACOSX/{a}', 'val/{a,b}')
    (tmp_path/'train/a/._0.jpg').write_bytes(b'mac'); (tmp_path/'train/.DS_Store').write_bytes(b'x')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = cpu(labelled_dls, tmp_path, size=16, bs=2)
    assert dls.vocab == ['a','b'] and len(dls.train_ds) == 4

def test_class_folders_that_are_links(tmp_path):
    layout(tmp_path/'far', '{x1,x2}')
    for s in ('train','val'):
        (tmp_path/s).mkdir()
        for c,t in (('a','x1'),('b','x2')): (tmp_path/s/c).symlink_to(tmp_path/'far'/t)
    dls = cpu(labelled_dls, tmp_path, size=16, bs=2)
    assert dls.vocab == ['a','b'] and len(dls.train_ds) == 4

def test_class_name():
    assert class_name(Path('train/n01440764/7.jpg')) == class_name('x/tench/7.jpg') == 'tench'
    assert class_name('train/cat/b1/7.jpg', 'train') == class_name(Path('train/cat/b1/deep/7.jpg'), Path('train')) == 'cat'
    for bad in ('unsup/7.jpg','train/unsup/7.jpg'):
        with pytest.raises(ValueError, match='unsup holds images without labels'): class_name(bad)
    with pytest.raises(ValueError, match='train holds images without labels'): class_name('train/7.jpg', 'train')
    with pytest.raises(ValueError): class_name('elsewhere/cat/7.jpg', 'train')

# Never without a batch

@pytest.mark.parametrize('f', [unlabeled_dls, labelled_dls])
def test_thirty_six_images(tmp_path, f):
    "fastai's own loaders have no batch then"
    layout(tmp_path, 'train/{a,b}', 'val/{a,b}', n=9)
    dls = cpu(f, tmp_path, size=16)
    assert len(dls.train) == 1 and len(dls.valid) == 1 and len(dls.train.one_batch()[0]) == len(dls.train_ds)
    for kw in (dict(drop_last=True), dict(drop_last=True, n=8), dict(dl_kwargs=[dict(drop_last=True), {}]), dict(dl_kwargs=[dict(drop_last=True, n=3), {}])):
        with pytest.raises(ValueError, match=r'there is no training batch: \d+ images, bs=64, drop_last=True; lower bs'): cpu(f, tmp_path, size=16, **kw)
    for kw in (dict(val_drop_last=True), dict(val_bs=50, val_drop_last=True), dict(dl_kwargs=[{}, dict(drop_last=True)])):
        with pytest.raises(ValueError, match='there is no validation batch'): cpu(f, tmp_path, size=16, **kw)
    assert len(cpu(f, tmp_path, size=16, bs=4, drop_last=True).train.one_batch()[0]) == 4

@pytest.mark.parametrize('f', [unlabeled_dls, labelled_dls])
@pytest.mark.parametrize('kw', [dict(bs=0), dict(bs=-2), dict(bs=None), dict(bs=2.5), dict(val_bs=0), dict(n=0), dict(size=0), dict(size=(16,16)), dict(n=1000)])
def test_sizes_that_cannot_be(synth, f, kw):
    with pytest.raises(ValueError, match=f'{first(kw)}.*{re.escape(str(first(kw.values())))}'): cpu(f, synth, **kw)

def test_fewer_images_than_bs_by_other_ways(synth, tmp_path):
    assert [len(b[0]) for b in cpu(labelled_dls, synth, size=16, bs=64, n_per_class=1).train] == [10]
    assert [len(b[0]) for b in cpu(labelled_dls, synth, size=16, bs=64, pct=.25).train] == [10]
    assert [len(b[0]) for b in cpu(unlabeled_dls, synth, size=16, bs=64, n=8).train] == [8]
    assert [len(b[0]) for b in cpu(unlabeled_dls, synth, size=16, bs=64, valid_pct=.9).train] == [9]
    assert len(synth_dls(synth, n=12, bs=64, labelled=False, device='cpu').train) == 1

def test_each_epoch_has_a_batch(tmp_path):
    "What the learner sees: weights move, the loss is a number"
    dls = cpu(labelled_dls, layout(tmp_path, 'train/{a,b}', 'val/{a,b}', n=9), size=16)
    learn = Learner(dls, nn.Sequential(Flatten(), nn.Linear(768,2)), lr=.1)
    w = learn.model[1].weight.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not torch.equal(w, learn.model[1].weight) and all(math.isfinite(o) for o in learn.recorder.values[-1])

# One's own transforms, and what is refused

def test_own_transforms_in_their_order(synth):
    seen = []
    def item(im): seen.append(('item', type(im), im.size)); return im
    class Batch(Transform):
        order = 50
        def encodes(self, x:TensorImage): seen.append(('batch', float(x.min()), float(x.max()))); return x
    dls = cpu(unlabeled_dls, synth, size=16, bs=8, item_tfms=item, batch_tfms=Batch())
    seen.clear()
    x = dls.valid.one_batch()[0]
    assert seen[0][0] == 'item' and issubclass(seen[0][1], PILImage) and seen[0][2] == (32,32), 'the opened picture, before it is cut'
    assert seen[-1][0] == 'batch' and 0<=seen[-1][1]<seen[-1][2]<=1 and float(x.min())<-.5, 'between 0–1 and Normalize'
    assert [type(o).__name__ for o in dls.after_batch.fs] == ['IntToFloatTensor','Batch','Normalize']

def test_fastais_transforms(synth):
    f = partial(cpu, labelled_dls, synth, size=16, bs=8, norm=None)
    plain = f(augment=False).valid.one_batch()[0]
    assert f(item_tfms=[Resize(20), ToTensor()]).one_batch()[0].shape == (8,3,16,16)
    assert f(batch_tfms=aug_transforms(size=24)).one_batch()[0].shape == (8,3,24,24)
    assert torch.equal(f(batch_tfms=[IntToFloatTensor()], augment=False).valid.one_batch()[0], plain), 'not divided twice'
    half = Normalize.from_stats([.5]*3, [.5]*3, cuda=False)
    torch.testing.assert_close(f(batch_tfms=half, augment=False).valid.one_batch()[0], (plain-.5)/.5)
    torch.testing.assert_close(f(batch_tfms=[Hue(p=1.)], augment=False).valid.one_batch()[0], plain, msg='in training only')
    still,mirror = [f(item_tfms=o, augment=False).valid.one_batch()[0] for o in (noop, FlipItem(p=1.))]
    assert torch.equal(still, mirror), 'in training only'
    with pytest.raises(ValueError, match='normalised twice.*norm=None'): cpu(labelled_dls, synth, size=16, batch_tfms=[half])
    with pytest.raises(ValueError, match='normalised twice'): cpu(unlabeled_dls, synth, size=16, batch_tfms=Normalize)

@pytest.mark.parametrize('f', [unlabeled_dls, labelled_dls, imagenette_dls, imagewang_pretrain_dls, synth_dls])
@pytest.mark.parametrize('k,say', [('after_batch','batch_tfms='), ('after_item','item_tfms='), ('val_after_batch','batch_tfms='), ('batch_size','bs='),
                                   ('splits','valid_pct='), ('dataset','a folder'), ('val_dataset','a folder')])
def test_what_would_undo_the_loaders(synth, f, k, say):
    with pytest.raises(TypeError, match=f'^{k}= would take the place of what these loaders do: pass {say}'): f(synth, **{k:[]})

@pytest.mark.parametrize('kw', [dict(before_batch=noop), dict(shuffle=False), dict(val_shuffle=True), dict(pin_memory=False), dict(val_bs=3)])
def test_what_may_be_passed(synth, kw):
    for f in unlabeled_dls,labelled_dls: assert cpu(f, synth, size=16, bs=8, **kw).one_batch()[0].shape == (8,3,16,16)
    if 'shuffle' in kw: assert cpu(labelled_dls, synth, size=16, bs=8, **kw).train.get_idxs()[:3] == [0,1,2]

def test_named_sets_take_all_of_it(synth):
    for f in imagenette_dls,imagewoof_dls,imagewang_dls: assert {'value_range','item_tfms','batch_tfms','class_from','valid_pct'} <= inspect.signature(f).parameters.keys()
    assert {'value_range','item_tfms','batch_tfms'} <= inspect.signature(imagewang_pretrain_dls).parameters.keys()
    assert len(cpu(imagewang_pretrain_dls, synth, size=16, bs=8, value_range=(0,255)).train)

# An exported learner, where this package cannot be imported

def elsewhere(code, cwd):
    "What `code` prints in a process that has fastai only"
    hide = "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['fastai_contrastive'] = None\nfrom fastai.vision.all import *\n"
    r = forked.code(hide+textwrap.dedent(code)+"\nassert not [o for o in sys.modules if o.startswith('fastai_contrastive.')]", cwd=cwd)
    assert r.returncode==0, r.stderr
    return [float(o) for o in r.stdout.split()]

def small(dls, path):
    set_seed(1)
    return Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(4), Flatten(), nn.Linear(48, dls.c)), path=path)

def quietly(learn): return ContextManagers([learn.no_logging(), learn.no_bar()])

def test_exported_learner_opens_with_fastai_alone(synth, tmp_path):
    "Files, bytes, arrays, images, several at once with labels: the same numbers"
    learn = small(cpu(labelled_dls, synth, size=24, bs=8), tmp_path)
    learn.export()
    fs = learn.dls.valid_ds.items[::6]
    with quietly(learn):
        one,many = learn.predict(fs[1])[2],learn.get_preds(dl=learn.dls.test_dl(fs, with_labels=True, num_workers=0))
    got = elsewhere(f"""
        learn,fs = load_learner('export.pkl'),[Path(o) for o in {[str(o) for o in fs]}]
        with learn.no_bar():
            for o in (fs[1], str(fs[1]), fs[1].read_bytes(), np.array(Image.open(fs[1])), PILImage.create(fs[1])): print(*learn.predict(o)[2].tolist())
            x,y = learn.get_preds(dl=learn.dls.test_dl(fs, with_labels=True, num_workers=0))
            print(*x.flatten().tolist(), *y.tolist())
            assert learn.predict(fs[1])[0] in {list(learn.dls.vocab)}
    """, tmp_path)
    torch.testing.assert_close(tensor(got[:50]).reshape(5,10), one[None].expand(5,-1))
    torch.testing.assert_close(tensor(got[50:]), torch.cat([many[0].flatten(), many[1].float()]))

def test_exported_learner_at_home_is_ours(synth, tmp_path):
    "Where the package is, EXIF is heeded as before"
    learn = small(cpu(labelled_dls, synth, size=24, bs=8), tmp_path)
    learn.export()
    exif = Image.Exif()
    exif[274] = 3
    f = saved(Image.open(learn.dls.valid_ds.items[0]).transpose(Image.ROTATE_180), tmp_path/'a.png', exif=exif)
    new = load_learner(tmp_path/'export.pkl')
    assert [type(o) for o in (new.dls.valid.after_item[0], new.dls.tls[0].tfms.fs[0])] == [CropResize,OpenRGB]
    with quietly(learn), quietly(new): torch.testing.assert_close(new.predict(f)[2], learn.predict(f)[2]), torch.testing.assert_close(new.predict(f)[2], new.predict(learn.dls.valid_ds.items[0])[2])

def test_exported_by_number_or_by_the_folder_above(tmp_path):
    "Labels are found there too, for WordNet's numbers and for deeper folders"
    a = layout(tmp_path/'a', 'train/{n01440764,n02102040}', 'val/{n01440764,English springer}')
    b = layout(tmp_path/'b', 'train/{cat,dog}', 'val/cat/{x}', 'val/dog/{x}')
    for p,kw in ((a,{}), (b,dict(class_from='top'))):
        small(cpu(labelled_dls, p, size=16, bs=2, **kw), p).export()
        assert elsewhere(f"""
            dls = load_learner('export.pkl').dls
            print(*dls.test_dl(sorted(get_image_files(Path({str(p)!r})/'val'), key=lambda o: -ord(o.parts[-2 if {p==a} else -3][0])), with_labels=True, num_workers=0, bs=9).one_batch()[1].tolist())
        """, p) == ([0,0,1,1] if p==a else [1,1,0,0])

def test_exported_with_a_range_says_why_not(synth, tmp_path):
    small(cpu(labelled_dls, synth, size=24, bs=8, value_range=(0,200)), tmp_path).export()
    assert type(load_learner(tmp_path/'export.pkl').dls.tls[0].tfms.fs[0]) is OpenRGB
    assert elsewhere("""
        try: load_learner('export.pkl')
        except RuntimeError as e: print(int('value_range=(0, 200)' in str(e) and 'install' in str(e)))
    """, tmp_path) == [1]

def test_vision_learner_exported(synth, tmp_path):
    set_seed(0)
    learn = vision_learner(cpu(labelled_dls, synth, size=32, bs=8, item_tfms=FlipItem(), batch_tfms=aug_transforms()), resnet18, pretrained=False, path=tmp_path)
    learn.export()
    f = learn.dls.valid_ds.items[3]
    with quietly(learn): want = learn.predict(f)[2]
    torch.testing.assert_close(tensor(elsewhere(f"""
        learn = load_learner('export.pkl')
        with learn.no_bar(): print(*learn.predict({str(f)!r})[2].tolist())""", tmp_path)), want)

def test_exported_learner_on_photographs(real, tmp_path):
    "Files of Imagenette: the same predictions; and close to them where ours had the decoder halve the picture"
    p = real('imagenette2-160')
    for size,tol in ((128,1e-6),(64,.05)):
        learn = small(cpu(labelled_dls, p, size=size, bs=8, n_per_class=1, augment=size==128), tmp_path)
        learn.export()
        fs = learn.dls.valid_ds.items[::400]
        with quietly(learn): want = learn.get_preds(dl=learn.dls.test_dl(fs, num_workers=0))[0]
        got = tensor(elsewhere(f"""
            learn = load_learner('export.pkl')
            with learn.no_bar(): print(*learn.get_preds(dl=learn.dls.test_dl({[str(o) for o in fs]}, num_workers=0))[0].flatten().tolist())""", tmp_path)).reshape(want.shape)
        assert (got-want).abs().max() < tol
