"Features, kNN, its monitor and the linear probe, against direct computations; what they must not disturb"
import itertools, math, pickle, pytest, warnings
from fastai.vision.all import *
from fastai_contrastive.evaluation.features import *
from fastai_contrastive.evaluation.knn import *
from fastai_contrastive.evaluation.linear import *

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
    ((torch.ones(4,2),torch.arange(4),torch.ones(0,2),torch.zeros(0).long()), 'validation set has 0 features'),
    ((torch.rand(4,2),tensor([0,0,0,1]),torch.rand(4,2),tensor([0,0,0,1])), 'smallest has 1; pass C')])
def test_bad_input_probe(fs, msg):
    with pytest.raises(ValueError, match=msg): linear_probe(fs)

def test_dls_are_asked_for():
    with pytest.raises(ValueError, match='pass dls'): linear_probe(make_enc())
