import sys, json, time, random
from pathlib import Path
from dphlib.runtime.machine import pin_kernels
pin_kernels()
from dataclasses import replace
from dphlib.settings.profiles import profile
from dphlib.settings.stages import WorldConfig, SftConfig, EvalConfig
from dphlib.training import sft
from dphlib.world import people_places as pp
from dphlib.models import load
from dphlib.sampling.transformers import TransformersSampler
from dphlib.sampling.protocol import SamplingConfig
from dphlib.verify import Verifier
from dphlib.runtime.machine import deterministic
from dphlib.world.templates import style_of
import pandas as pd, numpy as np
seed, steps, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
world = WorldConfig()
out.mkdir(parents=True, exist_ok=True)
p = profile("cpu")
base = out / f"base-{seed}-{steps}"
if not (base/"sft_log.json").exists():
    base.mkdir(exist_ok=True)
    t=time.time()
    def log(s,l):
        if s%50==0: print(s, round(l,3), round(time.time()-t), flush=True)
    sft.build(base, world, p.model, replace(p.sft, seed=seed, steps=steps), log)
wd = out/"world"
if not (wd/"sums_train.json").exists():
    wd.mkdir(exist_ok=True); t=time.time(); pp.build_world(world, wd); print("world", time.time()-t, flush=True)
from dphlib.types import Problem
deterministic(1)
model, tok = load.load_model(base)
sampler = TransformersSampler(model, tok)
rows=[]
def passk(n,c,k):
    from math import comb
    return 1-comb(n-c,k)/comb(n,k)
with Verifier(wd/"database", 1) as ver:
    for suite,n in (("in_domain",64),("cross_domain",32),("out_of_domain",32),("train",8)):
        probs=[Problem.from_json(r) for r in json.loads((wd/f"{suite}.json").read_text())]
        t=time.time()
        ans=sampler.sample(probs, SamplingConfig(n,1.0,1.0 if suite!="train" else .95,64), 3)
        g=ver.groups(probs,ans)
        gr=ver.groups(probs, sampler.sample(probs, SamplingConfig(1,0.0,1.0,64), 3))
        for pr,a,b in zip(probs,g,gr):
            st=pd.Series([style_of(x.text) for x in a.answers]).value_counts(normalize=True)
            rows.append(dict(suite=suite,subset=pr.meta["subset"],family=pr.meta["family"],right=pr.meta["right_styles"],n=n,c=a.correct,greedy=b.correct,ent=float(-(st*np.log(st)).sum()),trunc=np.mean([x.truncated for x in a.answers]), toks=np.mean([len(x.token_ids) for x in a.answers])))
        print(suite, round(time.time()-t), flush=True)
d=pd.DataFrame(rows); d.to_parquet(out/f"regime-{seed}-{steps}.parquet")
def show(d,by):
    o=[]
    for key,x in d.groupby(by):
        n=x.n.iloc[0]
        r=dict(key=key,N=len(x),greedy=100*x.greedy.mean(),ent=x.ent.mean(),near=100*(x.c>=.75*x.n).mean(),trunc=100*x.trunc.mean(),toks=x.toks.mean())
        for k in (1,8,16,32,64):
            if k<=n: r[f"p{k}"]=100*np.mean([passk(n,c,k) for c in x.c])
        o.append(r)
    print(pd.DataFrame(o).round(1).to_string(),flush=True)
show(d,["suite"]); show(d,["suite","subset"])
