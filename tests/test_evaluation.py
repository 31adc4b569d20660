"Features, kNN, its monitor and the linear probe, against direct computations; what they must not disturb"
import itertools, math, pickle, pytest, warnings
from fastai.vision.all import *
from fastai_contrastive.evaluation.features import *
from fastai_contrastive.evaluation.knn import *
from fastai_contrastive.evaluation.linear import *
from fastai_contrastive.evaluation import linear
from fastai_contrastive.encoder import *

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

def _image(i):
    "A noisy 24 px image, its colour and brightness set by the class `i%4`"
    rs = np.random.RandomState(i)
    return PILImage.create((rs.rand(24,24,3)*120 + np.eye(4,3)[i%4]*120).astype(np.uint8))

def make_dls(n=50, bs=16, n_valid=16, labels=True, **kwargs):
    tfms = [[_image]] + ([[lambda i: 'abcd'[i%4], Categorize()]] if labels else [])
    dsets = Datasets(list(range(n)), tfms, splits=(list(range(n_valid,n)), list(range(n_valid))), n_inp=1)
    return dsets.dataloaders(bs=bs, num_workers=0, device='cpu', after_item=[RandomResizedCrop(16, min_scale=.3), ToTensor()],
        after_batch=[IntToFloatTensor(), Flip(), Normalize.from_stats(*imagenet_stats)], **kwargs)

def make_enc(): return nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.5), nn.Conv2d(8,12,3))
def make_learn(cbs=None, seed=3, dls=None, **kwargs):
    set_seed(seed)
    model = nn.Sequential(make_enc(), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(12,4)))
    return Learner(dls or make_dls(), model, CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, **kwargs)

def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return learn.fit(*args, **kwargs)

def test_features_are_those_of_the_plain_loop():
    dls,enc = make_dls(),make_enc()
    for i in (0,1):
        x,y = extract_features(enc, dls[i], pbar=False)
        ims = [Pipeline([RandomResizedCrop(16, min_scale=.3), ToTensor(), IntToFloatTensor()], split_idx=1)(_image(o)) for o in dls[i].dataset.items]
        xb = Normalize.from_stats(*imagenet_stats, cuda=False)(TensorImage(torch.stack(ims)))
        with torch.no_grad(): want = enc.eval()(xb.as_subclass(Tensor)).mean((2,3))
        torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-4)
        assert y.tolist()==[o%4 for o in dls[i].dataset.items] and y.dtype==torch.long
        assert x.dtype==torch.float32 and type(x) is Tensor and type(y) is Tensor and not x.requires_grad

def test_train_loader_augments_and_extraction_does_not():
    dls = make_dls()
    dl = dls.train.new(shuffle=False, drop_last=False)
    assert not torch.equal(torch.cat([b[0] for b in dl]), torch.cat([b[0] for b in dl]))
    a,b = (torch.cat([b[0] for b in eval_dl(dls, 0)]) for _ in range(2))
    assert torch.equal(a, b) and len(a)==34
    assert dls.train.shuffle and dls.train.drop_last and dls.train_ds.split_idx==0

def test_augmentation_in_the_items_pipeline_is_off_too():
    dsets = Datasets(list(range(20)), [[_image, RandomResizedCrop(16), ToTensor()], [lambda i: i%4]], splits=(list(range(20)),[]), n_inp=1)
    dls = dsets.dataloaders(bs=8, num_workers=0, device='cpu', after_batch=[IntToFloatTensor()])
    a,b = (torch.cat([b[0] for b in eval_dl(dls, 0)]) for _ in range(2))
    assert torch.equal(a, b) and dsets.train.split_idx==0

def test_nothing_is_disturbed():
    dls,enc = make_dls(),make_enc().train()
    enc[1].eval()
    before = [m.training for m in enc.modules()],{k:v.clone() for k,v in enc.state_dict().items()},get_random_states(),dls.train.rng.getstate()
    extract_features(enc, dls.train, pbar=False)
    split_features(enc, dls, classes=['a','b'], pbar=False)
    modes,state,rng,dl_rng = before
    assert [m.training for m in enc.modules()]==modes
    assert all(torch.equal(v, enc.state_dict()[k]) for k,v in state.items())
    now = get_random_states()
    assert now['random_state']==rng['random_state'] and torch.equal(now['torch_state'], rng['torch_state'])
    assert all(np.array_equal(a, b) for a,b in zip(now['numpy_state'], rng['numpy_state'])) and dls.train.rng.getstate()==dl_rng

def test_modes_come_back_after_an_error():
    enc = nn.Sequential(nn.Conv2d(5,8,3), nn.Dropout()).train()
    with pytest.raises(RuntimeError): extract_features(enc, make_dls().valid, pbar=False)
    assert all(m.training for m in enc.modules())

def test_maps_tokens_features_and_learner():
    dls,enc = make_dls(),make_enc()
    maps = extract_features(enc, dls.valid, pbar=False)[0]
    pooled = extract_features(nn.Sequential(enc, nn.AdaptiveAvgPool2d(1), Flatten()), dls.valid, pbar=False)[0]
    tokens = extract_features(nn.Sequential(enc, Lambda(lambda x: x.flatten(2).transpose(1,2))), dls.valid, pbar=False)[0]
    for o in (pooled,tokens): torch.testing.assert_close(o, maps)
    learn = Learner(dls, nn.Sequential(enc, nn.Linear(12,4)), loss_func=noop)
    assert torch.equal(extract_features(learn, dls.valid, pbar=False)[0], maps)

def test_other_loaders():
    x,y = torch.randn(10,6),torch.arange(10)
    ds = torch.utils.data.TensorDataset(x, y)
    for dl in (torch.utils.data.DataLoader(ds, 4, shuffle=True, drop_last=True), DataLoader(ds, bs=4, shuffle=True, drop_last=True),
               [(x[:7],y[:7]),(x[7:],y[7:])]):
        f,l = extract_features(nn.Identity(), dl, pbar=False)
        assert torch.equal(f, x) and torch.equal(l, y)
    assert extract_features(nn.Identity(), [x], pbar=False)[1] is None

def test_unlabelled():
    dls = make_dls(labels=False)
    x,y = extract_features(make_enc(), dls.train, pbar=False)
    assert y is None and x.shape==(34,12)
    with pytest.raises(ValueError, match='the training set has no labels'): knn_accuracy(make_enc(), dls, k=3, pbar=False)

@pytest.mark.parametrize('enc,dl,msg', [
    (nn.Identity(), [], 'no batches'),
    (nn.Identity(), [(torch.randn(2,3), torch.rand(2))], 'class indices.*float32'),
    (nn.Identity(), [(torch.randn(2,3), torch.ones(2,4).long())], r'class indices.*\(2, 4\)'),
    (nn.Identity(), [torch.randn(2)], r'shape \(2,\)'),
    (Lambda(lambda x: (x,x)), [torch.randn(2,3)], 'gives tuple')])
def test_bad_input_features(enc, dl, msg):
    with pytest.raises(ValueError, match=msg): extract_features(enc, dl, pbar=False)

def test_classes_by_name_and_index():
    dls,enc = make_dls(),make_enc()
    a,b,full = (split_features(enc, dls, classes=c, pbar=False) for c in (['b','d'],[1,3],None))
    assert all(torch.equal(o, p) for o,p in zip(a, b)) and set(a.y.tolist())==set(a.valid_y.tolist())=={1,3}
    keep = torch.isin(full.y, tensor([1,3]))
    torch.testing.assert_close(a.x, full.x[keep])
    c = split_features(full, dls, classes=['b','d'])
    assert torch.equal(c.x, full.x[keep]) and torch.equal(c.valid_y, a.valid_y)
    with pytest.raises(ValueError, match="no class 'z'"): eval_dl(dls, 0, 'z')
    with pytest.raises(ValueError, match='no class 4'): eval_dl(dls, 0, 4)

@pytest.mark.parametrize('dl_cls', [DataLoader, torch.utils.data.DataLoader])
def test_classes_of_a_plain_data_set(dl_cls):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 9
        def __getitem__(self, i): return torch.full((2,), i)+torch.rand(2)/9+random.random()/9, i%3
    dls = DataLoaders(*[dl_cls(Noisy(), batch_size=4) for _ in range(2)])
    before = random.getstate(),torch.get_rng_state()
    fs = split_features(nn.Identity(), dls, classes=[0,2], pbar=False)
    assert fs.y.tolist()==fs.valid_y.tolist()==[0,2]*3 and fs.x[:,0].int().tolist()==[0,2,3,5,6,8]
    assert random.getstate()==before[0] and torch.equal(torch.get_rng_state(), before[1])

def test_no_images():
    dls = make_dls(n_valid=0)
    with pytest.raises(ValueError, match='validation set has no images'): knn_accuracy(make_enc(), dls, k=3, pbar=False)
    dls = make_dls(n_valid=2)
    with pytest.raises(ValueError, match='validation set has no images of the classes'): knn_accuracy(make_enc(), dls, k=3, classes='d', pbar=False)

def loop_knn(x, y, q, k, temp, own=None):
    "The vote in plain Python: sort by cosine, add up exp(sim/temp)"
    cos = lambda a,b: sum(i*j for i,j in zip(a,b))/math.sqrt(sum(i*i for i in a)*sum(j*j for j in b))
    res = []
    for i,a in enumerate(q.tolist()):
        near = sorted(((cos(a,b),c) for j,(b,c) in enumerate(zip(x.tolist(),y.tolist())) if own is None or j!=i), reverse=True)[:k]
        votes = Counter()
        for s,c in near: votes[c] += math.exp(s/temp)
        res.append(max(votes, key=votes.get))
    return res

@pytest.mark.parametrize('k,temp', [(1,.07),(5,.07),(20,.07),(20,1.),(60,.3)])
def test_knn_is_the_loop(k, temp):
    torch.manual_seed(k)
    x,y,q = torch.randn(60,4)*torch.rand(60,1)*9,torch.randint(0,5,(60,)),torch.randn(40,4)
    assert knn_predict(x, y, q, k, temp).tolist()==loop_knn(x, y, q, k, temp)

def test_knn_leaves_the_image_out():
    torch.manual_seed(0)
    x,y = torch.randn(50,4),torch.randint(0,4,(50,))
    want = loop_knn(x, y, x, 3, .07, own=True)
    for args,kw in (((x,y,x),{}), ((x,y),{}), ((x,y,x.clone()),{'loo':True})): assert knn_predict(*args, k=3, **kw).tolist()==want
    assert knn_predict(x, y, x.clone(), k=1).tolist()==y.tolist()
    assert want!=y.tolist()
    assert not (nearest_neighbours(x, k=49)[1]==torch.arange(50)[:,None]).any()

def test_one_data_set_as_both():
    torch.manual_seed(0)
    x,y = torch.randn(40,4),torch.randint(0,4,(40,))
    dl = DataLoader(torch.utils.data.TensorDataset(x, y), bs=8)
    dls = DataLoaders(dl, dl.new())
    acc = lambda x,y: (tensor(loop_knn(x, y, x, 3, .07, own=True))==y).double().mean().item()
    keep = y<2
    assert knn_accuracy(nn.Identity(), dls, k=3, pbar=False)==knn_accuracy((x,y,x,y), k=3)==acc(x, y)<.6
    assert knn_accuracy((x,y,x,y), k=3, classes=[0,1])==knn_accuracy(nn.Identity(), dls, k=3, classes=[0,1], pbar=False)==acc(x[keep], y[keep])<.9

def test_knn_unweighted_is_sklearns():
    from sklearn.neighbors import KNeighborsClassifier
    torch.manual_seed(1)
    x,y,q = torch.randn(80,6),torch.randint(0,2,(80,)),torch.randn(50,6)
    ref = KNeighborsClassifier(7, metric='cosine').fit(x.numpy(), y.numpy())
    assert knn_predict(x, y, q, k=7, temp=1e6).tolist()==ref.predict(q.numpy()).tolist()
    dist,idx = ref.kneighbors(q.numpy())
    sim,nb = nearest_neighbours(x, q, k=7)
    assert (nb.numpy()==idx).all() and np.allclose(sim, 1-dist, atol=1e-5)

def test_knn_in_chunks_and_small_temp():
    torch.manual_seed(2)
    x,y = torch.randn(70,5),torch.randint(0,3,(70,))
    for loo in (True,False):
        a,b = (nearest_neighbours(x, x, 4, loo, chunk=c)[1] for c in (1,2**24))
        assert torch.equal(a, b)
    a,b = (nearest_neighbours(x, x[:33].clone(), 4, chunk=c)[1] for c in (150,2**24))
    assert torch.equal(a, b)
    assert knn_predict(x, y, x[:20].clone()+.01, k=5, temp=1e-4).tolist()==knn_predict(x, y, x[:20].clone()+.01, k=1).tolist()

def _bad(i, v):
    x = torch.ones(30,4)
    x[i] = v
    return x

@pytest.mark.parametrize('kw,err,msg', [
    (dict(k=31), ValueError, 'got 31 with 30'), (dict(k=0), ValueError, 'got 0 with 30'), (dict(temp=0), ValueError, 'temp must be > 0'),
    (dict(train_labels=torch.zeros(29).long()), ValueError, '30 training features but 29 labels'),
    (dict(train_feats=_bad(3,0.)), FeatureError, '1 of 30 training features.*row 3'), (dict(feats=_bad(5,float('nan'))), FeatureError, 'row 5'),
    (dict(feats=_bad(0,float('inf'))), FeatureError, 'row 0'), (dict(feats=torch.ones(7,4), loo=True), ValueError, 'got 7 and 30')])
def test_bad_input_knn(kw, err, msg):
    args = dict(train_feats=torch.ones(30,4), train_labels=torch.zeros(30).long(), feats=torch.ones(30,4)) | kw
    with pytest.raises(err, match=msg): knn_predict(**args)

def _state(learn):
    opt = {f'opt{i}{k}':v for i,s in enumerate(learn.opt.state_dict()['state']) for k,v in s.items()}
    return {k:v.clone() for k,v in learn.model.state_dict().items()} | opt

@pytest.mark.parametrize('fit', ['fit','fit_one_cycle'])
def test_monitor_changes_nothing(fit):
    res = []
    for cb in (None, KNNMonitor(make_dls(n=40), k=3)):
        learn = make_learn(cb)
        set_seed(5)
        with learn.no_bar(), learn.no_logging(): getattr(learn, fit)(2, 1e-2)
        res.append((_state(learn), learn.recorder.losses, [v[:3] for v in learn.recorder.values], torch.rand(3), random.random(), np.random.rand()))
    (s1,l1,v1,r1,*p1),(s2,l2,v2,r2,*p2) = res
    assert s1.keys()==s2.keys() and all(torch.equal(tensor(s1[k]), tensor(s2[k])) for k in s1)
    assert l1==l2 and v1==v2 and torch.equal(r1, r2) and p1==p2

def test_monitor_column():
    dls = make_dls(n=40)
    cb = KNNMonitor(dls, k=3)
    learn = make_learn(cb)
    rows = []
    learn.logger = rows.append
    with learn.no_bar(): learn.fit(2, 1e-2)
    assert list(learn.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy','knn_acc','time']
    assert [len(r) for r in rows]==[6,6] and [len(v) for v in learn.recorder.values]==[4,4]
    assert learn.recorder.values[-1][-1]==rows[-1][4]==pytest.approx(knn_accuracy(learn.model[0], dls, k=3, pbar=False))
    assert learn.metrics.attrgot('name')==['accuracy'] and len(learn.validate())==2
    assert 'knn_acc' not in learn.recorder.metric_names and cb.values==[r[4] for r in rows]

def test_monitor_every():
    learn = make_learn(KNNMonitor(make_dls(n=40), k=3, every=2))
    quiet(learn, 3, 1e-2)
    assert [math.isnan(v[-1]) for v in learn.recorder.values]==[True,False,False]
    quiet(learn, 1, 1e-2)
    assert [len(v) for v in learn.recorder.values]==[4]

def test_monitor_works_beside_others(tmp_path):
    dls = make_dls(n=40)
    class Validates(Callback):
        order = 70
        def after_train(self): self.learn.validate(); self.learn.get_preds()
    cbs = [KNNMonitor(dls, k=3), KNNMonitor(dls, k=3, classes=['a','c'], col='knn_ac')]
    learn = make_learn(cbs, path=tmp_path)
    quiet(learn, 2, 1e-2, cbs=[SaveModelCallback(monitor='knn_ac'), CSVLogger()])
    assert list(learn.recorder.metric_names[-3:])==['knn_acc','knn_ac','time'] and len(learn.recorder.values[0])==5
    assert pd.read_csv(tmp_path/'history.csv').columns.tolist()==list(learn.recorder.metric_names)
    assert learn.knn_monitor is cbs[0] and learn.knn_monitor_knn_ac is cbs[1]
    plain = make_learn()
    for l in (plain,learn): quiet(l, 1, 1e-2, cbs=Validates())
    assert list(learn.recorder.metric_names)==list(plain.recorder.metric_names[:-1])+['knn_acc','knn_ac','time']
    assert len(learn.recorder.values[-1])==len(plain.recorder.values[-1])+2
    with pytest.raises(ValueError, match="a column 'knn_acc' already"): quiet(make_learn([KNNMonitor(dls, k=3), KNNMonitor(dls, k=3)]), 1, 1e-2)

def test_monitor_does_not_run_outside_a_fits_validation():
    calls = []
    class Count(KNNMonitor):
        def _acc(self): calls.append(1); return .5
    learn = make_learn(Count(make_dls(n=40), k=3))
    learn.validate(), learn.get_preds()
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert not calls
    quiet(learn, 1, 1e-2)
    assert len(calls)==1

@pytest.mark.parametrize('ex,when', [
    *itertools.product((KeyboardInterrupt,CancelFitException,CancelEpochException), ('after_step','after_train','before_validate')),
    (CancelValidException,'before_validate')])
def test_monitor_leaves_the_metrics(ex, when):
    def stop(self): raise ex()
    dls = make_dls(n=40)
    for persistent in (True,False):
        cb = KNNMonitor(dls, k=3)
        learn = make_learn(cb if persistent else None)
        mets = list(learn.metrics)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try: quiet(learn, 1, 1e-2, cbs=L(Callback(**{when:stop}))+(L() if persistent else L(cb)))
            except KeyboardInterrupt: pass
            assert list(learn.metrics)==mets
            quiet(learn, 1, 1e-2)
        assert list(learn.metrics)==mets
        assert ('knn_acc' in learn.recorder.metric_names)==persistent and len(learn.recorder.values[0])==3+persistent
        learn.remove_cb(KNNMonitor)
        quiet(learn, 1, 1e-2)
        assert 'knn_acc' not in learn.recorder.metric_names and len(learn.recorder.values[0])==3

def test_monitor_of_a_collapsed_encoder_warns_and_goes_on():
    class Dead(nn.Module):
        def __init__(self): super().__init__(); self.p = nn.Parameter(torch.zeros(1))
        def forward(self, x): return x.flatten(1)[:,:12]*self.p*0
    learn = make_learn(KNNMonitor(make_dls(n=40), k=3, encoder=lambda m: m[0]))
    learn.model[0] = nn.Sequential(Dead(), nn.Unflatten(1, (12,1,1)))
    with pytest.warns(UserWarning, match='knn_acc: 24 of 24 training features are zero'): quiet(learn, 1, 1e-2)
    assert math.isnan(learn.recorder.values[0][-1])

def test_monitor_encoder():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body,self.head = make_enc(),nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(12,4))
        def forward(self, x): return self.head(self.body(x))
    dls,model = make_dls(n=40),Net()
    with pytest.raises(ValueError, match='encoder='): quiet(Learner(dls, model, CrossEntropyLossFlat(), cbs=KNNMonitor(dls, k=3)), 1)
    for e in (model.body, lambda m: m.body):
        learn = Learner(dls, model, CrossEntropyLossFlat(), cbs=KNNMonitor(dls, k=3, encoder=e))
        quiet(learn, 1)
        assert learn.recorder.values[0][-1]==pytest.approx(knn_accuracy(model.body, dls, k=3, pbar=False))

def test_monitor_in_an_exported_learner():
    learn = make_learn(KNNMonitor(make_dls(n=40), k=3))
    quiet(learn, 1, 1e-2)
    data = pickle.dumps(learn.cbs.filter(lambda o: isinstance(o, KNNMonitor))[0])
    assert b'fastai_contrastive' not in data and type(pickle.loads(data)) is Callback

@pytest.mark.parametrize('kw,msg', [(dict(k=25), 'got 25 with 24'), (dict(every=0), 'every must be'), (dict(k=3,classes='x'), "no class 'x'")])
def test_bad_input_monitor(kw, msg):
    with pytest.raises(ValueError, match=msg): KNNMonitor(make_dls(n=40), **kw)

def blobs(n=90, nf=6, c=3, seed=0, noise=1.5):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%c
    return torch.randn(c, nf, generator=torch.Generator().manual_seed(9))[y] + noise*torch.randn(n, nf, generator=g), y

def test_probe_is_sklearns():
    from sklearn.linear_model import LogisticRegression
    (x,y),(vx,vy) = blobs(),blobs(60, seed=1)
    x,vx = x*torch.logspace(-2,2,6),vx*torch.logspace(-2,2,6)
    for C in (.001,.1,10.):
        m,s = x.mean(0),x.std(0, unbiased=False)
        ref = LogisticRegression(C=C, max_iter=1000).fit(((x-m)/s).numpy(), y.numpy()).score(((vx-m)/s).numpy(), vy.numpy())
        res = linear_probe((x,y,vx,vy), C=C)
        assert res.acc==pytest.approx(ref) and res==Probe(res.acc, 90, 60, C) and .4<ref<.99

def test_probe_chooses_C_without_looking_at_validation():
    (x,y),(vx,vy) = blobs(),blobs(60, seed=1)
    a,b = linear_probe((x,y,vx,vy)),linear_probe((x,y,vx,vy.flip(0)))
    assert a.C==b.C==choose_C(x.numpy(), y.numpy()) and a.acc!=b.acc
    assert linear_probe((x,y,vx,vy), C=a.C)==a
    scores = {}
    from sklearn.model_selection import StratifiedKFold
    for c in (1e-4,1e-3,1e-2,1e-1,1):
        folds = StratifiedKFold(3, shuffle=True, random_state=0).split(x, y)
        scores[c] = np.mean([linear_probe((x[i],y[i],x[j],y[j]), C=c).acc for i,j in folds])
    assert a.C==max(scores, key=scores.get)

def test_probe_of_an_encoder():
    dls,enc = make_dls(),make_enc()
    fs = split_features(enc, dls, pbar=False)
    assert linear_probe(enc, dls, C=.1, pbar=False)==linear_probe(fs, C=.1)
    assert linear_probe(enc, dls, C=.1, classes=['a','b'], pbar=False).n_valid==8

def test_probe_warns_if_not_converged():
    from sklearn.exceptions import ConvergenceWarning
    with pytest.warns(ConvergenceWarning): linear_probe((*blobs(),*blobs(60, seed=1)), C=100., max_iter=2)

@pytest.mark.parametrize('fs,msg', [
    ((torch.ones(4,2),torch.zeros(4).long(),torch.ones(4,2),torch.zeros(4).long()), 'needs two classes'),
    ((torch.full((4,2),float('nan')),torch.arange(4),torch.ones(4,2),torch.arange(4)), 'training features hold infinite or nan'),
    ((torch.ones(4,2),torch.arange(4),torch.full((4,2),float('inf')),torch.arange(4)), 'validation features hold'),
    ((torch.ones(4,2),torch.arange(3),torch.ones(4,2),torch.arange(4)), 'training set has 4 features and 3 labels'),
    ((torch.ones(4,2),torch.arange(4),torch.ones(0,2),torch.zeros(0).long()), 'validation set has 0 features')])
def test_bad_input_probe(fs, msg):
    with pytest.raises(ValueError, match=msg): linear_probe(fs)

def test_dls_are_asked_for():
    with pytest.raises(ValueError, match='pass dls'): linear_probe(make_enc())

# Two normalisations

half,imagenet = ([.5]*3,[.5]*3),imagenet_stats

def normed_dls(train=imagenet, valid=None, n=40, **kwargs):
    "`make_dls` with these statistics, None for no `Normalize`, in the training loader, and (if others) in the validation loader"
    dls = make_dls(n=n, **kwargs)
    for dl,norm in zip(dls.loaders, (train, train if valid is None else valid)):
        fs = [IntToFloatTensor(), Flip()] + ([Normalize.from_stats(*norm, cuda=False)] if norm else [])
        dl.after_batch = Pipeline(fs, split_idx=dl.split_idx)
    return dls

def enc_with(stats):
    enc = Encoder(make_enc())
    if stats!='unknown': enc.stats = stats and dict(zip(('mean','std'), stats))
    return enc

def said(f, what='normalised in two ways'):
    "The warnings about `what` that `f()` gives"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return [str(o.message) for o in w if what in str(o.message)]

scores = dict(knn_accuracy=lambda e,d: knn_accuracy(e, d, k=3, pbar=False), linear_probe=lambda e,d: linear_probe(e, d, C=.1, pbar=False),
    split_features=lambda e,d: split_features(e, d, pbar=False), extract_features=lambda e,d: extract_features(e, d.valid, pbar=False),
    classes=lambda e,d: knn_accuracy(e, d, k=3, classes=['a','b'], pbar=False))

@pytest.mark.parametrize('score', scores)
@pytest.mark.parametrize('enc,norm,n', [(half,imagenet,1), (half,None,1), (half,half,0), (imagenet,imagenet,0), (([0.],[1.]),None,0), (([0.],[1.]),half,1),
    (None,half,0), ('unknown',half,0), ('unknown',None,0)])
def test_encoder_meets_other_images(score, enc, norm, n):
    "Said once a call, where both are known; no `Normalize` is a statement, too"
    assert len(said(lambda: scores[score](enc_with(enc), normed_dls(norm))))==n

@pytest.mark.parametrize('score', scores)
@pytest.mark.parametrize('own,norm,n', [(half,imagenet,1), (None,imagenet,1), (half,None,1), (half,half,0), (None,None,0)])
def test_learner_meets_other_images(score, own, norm, n):
    "The learner's training images count, not what a file once said"
    learn = Learner(normed_dls(own), nn.Sequential(enc_with(([.1],[.1])), nn.Linear(12,4)), loss_func=noop)
    ws = said(lambda: scores[score](learn, normed_dls(norm)))
    assert len(ws)==n and all("the learner's own" in o for o in ws)

def test_encoder_inside_a_module_or_unknown_loaders():
    inner = nn.Sequential(enc_with(half), nn.Linear(12,6))
    for m in (inner, nn.DataParallel(inner, device_ids=[])): assert len(said(lambda: split_features(m, normed_dls(), pbar=False)))==1
    ds = torch.utils.data.TensorDataset(torch.rand(20,3,8,8), torch.arange(20)%4)
    dls = DataLoaders(*[torch.utils.data.DataLoader(ds, 4) for _ in range(2)])
    assert not said(lambda: split_features(inner, dls, pbar=False)) and not said(lambda: extract_features(inner, [next(iter(dls[0]))], pbar=False))
    learn = Learner(dls, nn.Sequential(enc_with(half), nn.Linear(12,4)), loss_func=noop)
    assert len(said(lambda: split_features(learn, normed_dls(), pbar=False)))==1, 'the loaders say nothing, the encoder does'

@pytest.mark.parametrize('train,valid,enc,n', [(half,imagenet,'unknown',1), (half,imagenet,imagenet,1), (half,imagenet,half,1), (half,[],imagenet,1), (half,half,half,0)])
def test_two_loaders_that_disagree(train, valid, enc, n):
    ws = said(lambda: split_features(enc_with(enc), normed_dls(train, valid), pbar=False))
    assert len(ws)==n

@pytest.mark.parametrize('own,norm,n', [(imagenet,imagenet,0), (half,imagenet,1), (None,imagenet,1), (imagenet,None,1)])
def test_monitor_meets_other_images(own, norm, n):
    "Said at every fit, once, and not every epoch"
    learn = make_learn(KNNMonitor(normed_dls(norm), k=3), dls=normed_dls(own))
    assert len(said(lambda: quiet(learn, 3, 1e-2)))==n
    assert len(said(lambda: quiet(learn, 1, 1e-2)))==n and not said(lambda: learn.validate())

def test_saved_encoder_meets_other_images(tmp_path):
    learn = Learner(normed_dls(half), nn.Sequential(create_encoder(xresnet18, widen=.25), nn.Linear(128,4)), loss_func=CrossEntropyLossFlat())
    enc = load_encoder(save_encoder(learn, tmp_path/'e'))
    assert [len(said(lambda: knn_accuracy(enc, normed_dls(o), k=3, pbar=False))) for o in (half,imagenet,None)]==[0,1,1]

# Several processes

def test_loaders_that_share_images_among_processes():
    "Every process sees every image, and no false alarm"
    from fastai.distributed import DistributedDL
    dls = make_dls(n=40)
    want = split_features(enc := make_enc(), dls, pbar=False)
    dls.loaders = [DistributedDL(dl, 0, 2) for dl in dls.loaders]
    got = split_features(enc, dls, pbar=False)
    assert all(torch.equal(a, b) for a,b in zip(want, got))
    learn = Learner(dls, nn.Sequential(enc, nn.Linear(12,4)), loss_func=noop)
    assert not said(lambda: split_features(learn, make_dls(n=40), pbar=False))

# Labels that are no classes, found before an image is read

class Never:
    "Opens images until it is told to stop"
    stopped = False
    def __call__(self, i):
        assert not self.stopped, 'an image was read'
        return _image(i)

def labelled(*ys, tfm=None, n=20):
    "Both sets, with these label pipelines; reading an image is an error if there is no `tfm`"
    never = Never()
    dsets = Datasets(list(range(n)), [[tfm or never], *ys], splits=(list(range(8,n)),list(range(8))), n_inp=1)
    dls = dsets.dataloaders(bs=4, num_workers=0, device='cpu', after_item=[ToTensor()], after_batch=[IntToFloatTensor()])
    never.stopped = True
    return dls

names = lambda i: 'abcd'[i%4]
no_classes = dict(
    several=([lambda i: ['a','bc'[i%2]], MultiCategorize(['a','b','c']), OneHotEncode(3)],), regression=([lambda i: i/3, RegressionSetup()],),
    box=([lambda i: tensor([[0.,0,1,1]])],), mask=([lambda i: PILMask.create(np.zeros((4,4), dtype=np.uint8))],), text=([names],),
    two=([names, Categorize()],[lambda i: i%2]), none=())

@pytest.mark.parametrize('what', no_classes)
@pytest.mark.parametrize('f', [*scores, 'KNNMonitor'])
def test_labels_that_are_no_classes(what, f):
    if f=='extract_features': return
    dls = labelled(*no_classes[what])
    f = (lambda e,d: KNNMonitor(d, k=3)) if f=='KNNMonitor' else scores[f] if f!='classes' else lambda e,d: split_features(e, d, classes=[0,1], pbar=False)
    with pytest.raises(ValueError, match='no classes|no labels|2 labels'): f(make_enc(), dls)

def test_monitor_of_several_labels_by_fastais_block(tmp_path):
    for i in range(8): _image(i).save(tmp_path/f'{i}.png')
    for block,get_y in ((MultiCategoryBlock, lambda o: ['a', 'bc'[len(o.stem)%2]]), (RegressionBlock, lambda o: float(o.stem)), (MaskBlock, lambda o: o)):
        dls = DataBlock((ImageBlock,block), get_items=get_image_files, get_y=get_y, splitter=RandomSplitter(.5)).dataloaders(tmp_path, bs=2, num_workers=0)
        with pytest.raises(ValueError, match='no classes'): KNNMonitor(dls, k=2)

@pytest.mark.parametrize('y', [np.int64, torch.tensor, bool, np.uint8, lambda i: TensorCategory(i)])
def test_whole_numbers_of_any_kind(y):
    fs = split_features(make_enc(), labelled([lambda i: y(i%2)], tfm=_image), pbar=False)
    assert fs.y.tolist()==[i%2 for i in range(8,20)] and fs.y.dtype==torch.long

@pytest.mark.parametrize('f', ['knn_accuracy','linear_probe','split_features','KNNMonitor'])
def test_missing_labels(f):
    "-1, or fastai's `#na#`, is no class"
    f = (lambda e,d: KNNMonitor(d, k=3)) if f=='KNNMonitor' else scores[f]
    with pytest.raises(ValueError, match='have no label .below 0'): f(make_enc(), labelled([lambda i: i%4-1], tfm=_image))
    dls = labelled([lambda i: 'unknown' if i%3==0 else names(i), Categorize('abcd', add_na=True)], tfm=_image)
    with pytest.raises(ValueError, match='have no label .#na#'): f(make_enc(), dls)
    assert set(split_features(make_enc(), dls, classes=[1,2], pbar=False).y.tolist())=={1,2}
    x,y = torch.randn(8,4),torch.arange(8)%4-1
    assert set(split_features((x,y,x,y), classes=[0,1]).y.tolist())=={0,1}

def test_classes_that_training_has_not():
    "Said once, where features are made; they count as wrong"
    dls = labelled([lambda i: 'abcdez'[5 if i<2 else i%4], Categorize('abcdez')], tfm=_image)
    what = 'that no training image has'
    ws = said(lambda: knn_accuracy(make_enc(), dls, k=3, pbar=False), what)
    assert len(ws)==1 and '2 of 8' in ws[0]
    assert len(said(lambda: linear_probe(make_enc(), dls, C=.1, pbar=False), what))==1
    fs = split_features(make_enc(), dls, pbar=False)
    assert not said(lambda: [knn_accuracy(fs, k=3), linear_probe(fs)], what) and not said(lambda: split_features(make_enc(), dls, classes=[0,1], pbar=False), what)
    assert len(said(lambda: KNNMonitor(dls, k=3), what))==1
    learn = make_learn(KNNMonitor(dls, k=3), dls=make_dls())
    assert not said(lambda: quiet(learn, 2, 1e-2), what)

@pytest.mark.parametrize('f', ['knn_accuracy','linear_probe','KNNMonitor'])
def test_one_class(f):
    f = (lambda e,d: KNNMonitor(d, k=3)) if f=='KNNMonitor' else scores[f]
    with pytest.raises(ValueError, match='needs two classes'): f(make_enc(), labelled([lambda i: 0], tfm=_image))

@pytest.mark.parametrize('f', ['knn_accuracy','KNNMonitor'])
def test_k_is_looked_at_before_an_image_is_read(f):
    dls = labelled([names, Categorize()])
    f = partial(KNNMonitor, dls) if f=='KNNMonitor' else partial(knn_accuracy, make_enc(), dls, pbar=False)
    with pytest.raises(ValueError, match='got 20 with 12; k=12 would do'): f()
    for k in (0, -1, 2.5, 13): 
        with pytest.raises(ValueError, match='k must be a whole number'): f(k=k)
    for temp in (0, -1, float('nan'), 'a'):
        with pytest.raises(ValueError, match='temp must be > 0'): f(k=3, temp=temp)

def test_k_where_both_sets_are_one():
    "Each image is left out of its own neighbours: found when the monitor is made"
    ds = [(x,i%2) for i,x in enumerate(torch.rand(10,3,8,8))]
    dls = DataLoaders(DataLoader(ds, bs=4), DataLoader(ds, bs=4))
    assert KNNMonitor(dls, k=9).both
    with pytest.raises(ValueError, match='got 10 with 9'): KNNMonitor(dls, k=10)

def test_images_in_both_sets(tmp_path):
    "Each finds itself: the score would be too good"
    for i in range(12): _image(i).save(tmp_path/f'{i}.png')
    def _dls(valid): return DataBlock((ImageBlock,CategoryBlock('abcd')), get_items=get_image_files, get_y=lambda o: names(int(o.stem)), item_tfms=Resize(16),
        splitter=lambda o: (list(range(12)) if valid else list(range(8)), list(range(8,12)))).dataloaders(tmp_path, bs=4, num_workers=0)
    what = 'find themselves'
    for f in (lambda d: knn_accuracy(make_enc(), d, k=3, pbar=False), lambda d: linear_probe(make_enc(), d, C=1., pbar=False)):
        assert '4 of 4' in said(lambda: f(_dls(True)), what)[0] and not said(lambda: f(_dls(False)), what)
    assert len(said(lambda: KNNMonitor(_dls(True), k=3), what))==1 and not said(lambda: KNNMonitor(_dls(False), k=3), what)

@pytest.mark.parametrize('dls', [lambda: make_dls().valid, lambda: 'photos', lambda: None, lambda: [1,2]])
def test_what_is_no_dls(dls):
    for f in scores.values():
        if f is not scores['extract_features']:
            with pytest.raises((TypeError,ValueError), match='must be DataLoaders|pass dls'): f(make_enc(), dls())
    with pytest.raises(TypeError, match='must be DataLoaders'): KNNMonitor(dls())

@pytest.mark.parametrize('enc', ['e.safetensors', Path('e'), lambda x: x, None, 3])
def test_what_is_no_encoder(enc):
    for f in scores.values():
        with pytest.raises(TypeError, match='the encoder must be a module.*pass'): f(enc, make_dls())

def test_names_without_a_vocabulary():
    dls = labelled([lambda i: i%4], tfm=_image)
    with pytest.raises(ValueError, match='no vocab'): split_features(make_enc(), dls, classes='cat', pbar=False)
    with pytest.raises(ValueError, match='Did you mean'): split_features(make_enc(), make_dls(), classes='aa', pbar=False)

# Batches, precision, loaders

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_encoder_in_another_precision(dtype):
    enc,dls = make_enc(),make_dls()
    want = extract_features(enc, dls.valid, pbar=False)[0]
    got = extract_features(enc.to(dtype), dls.valid, pbar=False)[0]
    assert got.dtype==torch.float32 and torch.allclose(got, want, atol=.05) and next(enc.parameters()).dtype==dtype

def test_encoder_that_is_moved():
    enc = make_enc()
    want = extract_features(enc, make_dls().valid, pbar=False)[0]
    assert torch.equal(extract_features(enc, make_dls().valid, device='cpu', pbar=False)[0], want)
    with pytest.raises(Exception): extract_features(enc, make_dls().valid, device='meta', pbar=False)

class Two(nn.Module):
    def forward(self, a, b): return torch.cat([a.mean((2,3)),b.mean((2,3))], 1)

def test_several_inputs():
    x,y = torch.rand(12,3,8,8),torch.arange(12)%3
    for dl in (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x*2, y), 4), DataLoader(list(zip(x, x*2, y)), bs=4)):
        f,l = extract_features(Two(), dl, pbar=False)
        assert torch.allclose(f, torch.cat([x.mean((2,3)),2*x.mean((2,3))], 1)) and torch.equal(l, y)
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y, torch.arange(12)), 4)
    with pytest.raises(ValueError, match='set n_inp'): extract_features(make_enc(), dl, pbar=False)
    with pytest.raises(ValueError, match='a batch holds 2 labels'):
        dl.n_inp = 1
        extract_features(make_enc(), [*dl] and Batches(dl), pbar=False)
    with pytest.raises(ValueError, match='must be a tensor'): extract_features(make_enc(), [dict(x=x)], pbar=False)
    with pytest.raises(ValueError, match='must be a tensor'): extract_features(make_enc(), [([x,x],y)], pbar=False)

class Batches(list): n_inp = 1

class Counts(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([(torch.full((2,), float(i)), i%3) for i in range(9)])

def test_pytorchs_loaders():
    "Shuffled by a sampler of batches, or streaming"
    ds = torch.utils.data.TensorDataset(torch.arange(10.)[:,None], torch.arange(10))
    sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(ds), 4, drop_last=True)
    x,y = extract_features(nn.Identity(), torch.utils.data.DataLoader(ds, batch_sampler=sampler), pbar=False)
    assert y.tolist()==list(range(10)) and x[:,0].tolist()==list(range(10))
    for dl in (torch.utils.data.DataLoader(Counts(), 4), DataLoader(Counts(), bs=4)):
        x,y = extract_features(nn.Identity(), dl, pbar=False)
        assert y.tolist()==[i%3 for i in range(9)]
    dls = DataLoaders(torch.utils.data.DataLoader(Counts(), 4), torch.utils.data.DataLoader(ds, 4))
    assert len(split_features(nn.Sequential(nn.Flatten(), Lambda(lambda x: x[:,:1])), dls, pbar=False).y)==9
    with pytest.raises(TypeError, match='cannot choose'): split_features(nn.Identity(), dls, classes=[0,1], pbar=False)

@pytest.mark.parametrize('fs,msg', [
    ((torch.rand(4,2),torch.arange(4),torch.rand(4,3),torch.arange(4)), 'one width: got 2 in training and 3'),
    ((torch.rand(4),torch.arange(4),torch.rand(4),torch.arange(4)), 'needed features'),
    ((torch.rand(4,2),torch.rand(4),torch.rand(4,2),torch.rand(4)), 'needed features'),
    ((torch.rand(4,2),torch.arange(4)), 'got 2')])
def test_bad_features(fs, msg):
    for f in (split_features, linear_probe, partial(knn_accuracy, k=2)):
        with pytest.raises(ValueError, match=msg): f(fs)

def test_features_as_arrays_with_gradient_or_in_half_precision():
    (x,y),(vx,vy) = blobs(),blobs(60, seed=1)
    want = knn_accuracy((x,y,vx,vy), k=3),linear_probe((x,y,vx,vy), C=.1)
    for fs in ((x.numpy(),y.numpy(),vx.numpy(),vy.numpy()), (x.requires_grad_(),y.int(),vx,vy)):
        assert (knn_accuracy(fs, k=3),linear_probe(fs, C=.1))==want
    assert linear_probe((x.bfloat16(),y,vx.bfloat16(),vy), C=.1).acc==pytest.approx(want[1].acc, abs=.1)
    x = x.detach().numpy()
    assert knn_accuracy((x,y,x,y), k=1)<.9, 'one array as both sets: each row is left out of its own neighbours'

def test_huge_features_have_directions():
    (x,y),(vx,_) = blobs(),blobs(60, seed=1)
    assert torch.equal(knn_predict(x*1e25, y, vx*1e25, k=3), knn_predict(x, y, vx, k=3))

@pytest.mark.parametrize('kw,msg', [(dict(train_labels=torch.rand(30)), 'class indices'), (dict(train_labels=torch.arange(30)-1), 'class indices'),
    (dict(n_classes=3), 'there is a label 29'), (dict(feats=torch.ones(7,3)), 'two widths'), (dict(feats=torch.ones(4)), r'must be \(n, nf\)')])
def test_bad_votes(kw, msg):
    with pytest.raises(ValueError, match=msg): knn_predict(**dict(dict(train_feats=torch.ones(30,4), train_labels=torch.arange(30), feats=torch.ones(5,4), k=3), **kw))

# Few images of a class

@pytest.mark.parametrize('counts,n_splits', [((9,9,9),3), ((9,9,2),2), ((9,9,1),3), ((2,2,1),2), ((5,1,1),3), ((3,2,1,1),2)])
def test_probe_with_few_images_of_a_class(counts, n_splits):
    y = torch.cat([torch.full((n,), i) for i,n in enumerate(counts)])
    x = F.one_hot(y).float()+.3*torch.randn(len(y), len(counts))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        p = linear_probe((x,y,x.clone(),y.clone()))
    assert p.C in (1e-4,1e-3,1e-2,1e-1,1) and p.n_train==len(y) and p.acc>.3
    splits = linear._splits(y.numpy(), 3, 0)
    single = [i for i,c in enumerate(y.tolist()) if counts[c]==1]
    assert len(splits)==n_splits
    for i,j in splits:
        assert set(i)|set(j)==set(range(len(y))) and not set(i)&set(j), 'each image once'
        assert set(single)<=set(i) and set(y[i].tolist())==set(range(len(counts))), 'every class is learned from'
    assert sorted(np.concatenate([j for _,j in splits]).tolist())==[o for o in range(len(y)) if o not in single], 'and asked about, if it can be'

def test_probe_with_one_image_of_every_class():
    x,y = torch.eye(4),torch.arange(4)
    with pytest.warns(UserWarning, match='C=0.01 is taken'): assert linear_probe((x,y,x,y))==Probe(1., 4, 4, .01)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert linear_probe((x,y,x,y), C=.01).C==.01

def test_neighbours_and_probe_of_a_class_of_two_images():
    "What `contrastive-eval` meets: neither score costs the other"
    dls = labelled([lambda i: 'z' if i in (8,9) else names(i), Categorize('abcdz')], tfm=_image)
    fs = split_features(make_enc(), dls, pbar=False)
    assert 0<=knn_accuracy(fs, k=3)<=1 and 0<=linear_probe(fs).acc<=1

@pytest.mark.parametrize('C', [0, -1, float('nan'), 'a'])
def test_bad_C(C):
    with pytest.raises(ValueError, match='C must be a finite number, above 0'): linear_probe((torch.rand(4,2),torch.arange(4),torch.rand(4,2),torch.arange(4)), C=C)

def test_folds():
    with pytest.raises(ValueError, match='folds must be 2 or more'): choose_C(np.random.rand(8,2), np.arange(8)%2, folds=1)
    with pytest.raises(ValueError, match='needs two classes'): choose_C(np.random.rand(8,2), np.zeros(8))

# What the monitor finds before the fit, and who reads its column

def test_monitor_tries_one_image_before_the_fit():
    "Other channels, features of the wrong shape: found before a step is made"
    class Steps(Callback):
        n = 0
        def before_batch(self): Steps.n += 1
    grey = nn.Sequential(nn.Conv2d(1,8,3), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(8,4)))
    for model,err in ((grey,RuntimeError), (nn.Sequential(nn.Flatten(0), nn.Linear(768,4)),ValueError)):
        learn = Learner(make_dls(), model, CrossEntropyLossFlat(), cbs=[KNNMonitor(make_dls(n=40), k=3), Steps()])
        with pytest.raises(err): quiet(learn, 1)
    assert Steps.n==0

def test_monitor_is_for_one_learner():
    cb = KNNMonitor(make_dls(n=40), k=3)
    learn = make_learn(cb)
    with pytest.raises(ValueError, match='belongs to another Learner'): make_learn(cb)
    quiet(learn, 1, 1e-2)
    assert len(learn.recorder.values[0])==4
    learn.remove_cb(cb)
    other = make_learn(cb)
    quiet(other, 1, 1e-2)
    assert len(other.recorder.values[0])==4

@pytest.mark.parametrize('every', [1,2])
def test_monitor_and_fastais_trackers(tmp_path, every, capsys):
    "A column of numbers, never None; higher is better"
    vals = iter([.2,.9,.4,.3])
    class Fake(KNNMonitor):
        def _acc(self): return next(vals)
    learn = make_learn(Fake(make_dls(n=40), k=3, every=every), path=tmp_path)
    seen = []
    cbs = [SaveModelCallback(monitor='knn_acc'), CSVLogger(), ShowGraphCallback(), ReduceLROnPlateau(monitor='knn_acc', patience=9)]
    learn.fit(4, 1e-2, cbs=[*cbs, Callback(after_epoch=lambda self: seen.append(self.recorder.log[-2]))])
    want = dict(zip((1,2), ([.2,.9,.4,.3],[math.nan,.2,math.nan,.9])))[every]
    assert [v[-1] for v in learn.recorder.values]==pytest.approx(want, nan_ok=True) and all(type(v[-1]) is float for v in learn.recorder.values)
    assert pd.read_csv(tmp_path/'history.csv').knn_acc.tolist()==pytest.approx(want, nan_ok=True)
    found = [l for l in capsys.readouterr().out.splitlines() if 'Better model' in l]
    assert [float(l.split('value: ')[1][:-1]) for l in found]==[.2,.9]

def test_monitor_and_early_stopping():
    vals = iter([.2,.9,.4,.3,.2])
    class Fake(KNNMonitor):
        def _acc(self): return next(vals)
    learn = make_learn(Fake(make_dls(n=40), k=3))
    quiet(learn, 5, 1e-2, cbs=EarlyStoppingCallback(monitor='knn_acc', patience=2))
    assert len(learn.recorder.values)==4

def test_monitor_beside_training_metrics():
    learn = make_learn(KNNMonitor(make_dls(n=40), k=3))
    learn.recorder.train_metrics = True
    quiet(learn, 1, 1e-2)
    rec = learn.recorder
    assert len(rec.values[0])==len(rec.metric_names)-2 and 0<=dict(zip(rec.metric_names[1:], rec.values[0]))['knn_acc']<=1

@pytest.mark.parametrize('n', [0,1,-5,2.5])
def test_collapse_figures_of_too_few(n):
    "A negative number would cut images off the end, and say nothing"
    from fastai_contrastive.data import synth_dls
    from fastai_contrastive.evaluation.collapse import collapse_figures
    with pytest.raises(ValueError, match='n must be a whole number, 2 or more'): collapse_figures(nn.Flatten(), synth_dls(size=32, bs=8), n=n)
