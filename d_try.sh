set -x
R=build/release/rmoe
T=$(mktemp -d)
python3 - $T <<'P'
import sys,random
r=random.Random(1); w="the router remembers what a token was and every layer asks it again".split()
open(sys.argv[1]+"/t.txt","w").write("".join(r.choice(w)+(" " if r.random()<.9 else "\n") for _ in range(9000)))
open(sys.argv[1]+"/a.jsonl","w").write("".join('{"instruction": "say %d", "input": "%s", "output": "%s"}\n'%(i,r.choice(w) if i%2 else "", "" if i==7 else r.choice(w)) for i in range(60)))
P
nice -n 10 $R data prepare $T/t.txt --out $T/data | tail -2
F="--threads 1 --model.family=llama --model.layers=2 --model.width=16 --model.heads=2 --model.moe.experts=4 --model.moe.expert_width=12 --train.batch=4 --train.block=32 --train.steps=3 --train.sample.length=0"
nice -n 10 $R train $F --model.dense_layers=2 --model.dense_width=24 --data.path=$T/data --out $T/dense
nice -n 10 $R upcycle $T/dense --out $T/up --method split --experts 4 --top-k 2 --slices 2
nice -n 10 $R retrofit $T/up --out $T/retro --width 8 --train routers --json
grep -n "freeze\|init =" $T/retro/config.toml
nice -n 10 $R train configs/sft_alpaca_frozen_router_and_cell.toml --init $T/retro --data.instruct.train=$T/a.jsonl --train.batch=8 --train.accumulate=2 --train.block=120 --train.epochs=1 --out $T/sft --threads 1
nice -n 10 $R eval $T/sft --threads 1
nice -n 10 $R train configs/sft_alpaca.toml --init $T/retro --data.instruct.train=$T/a.jsonl --train.freeze='["*.nope"]' --out $T/x; echo $?
nice -n 10 $R train configs/sft_alpaca.toml --out $T/y; echo $?
nice -n 10 $R train configs/sft_alpaca.toml --init $T/up --data.instruct.train=$T/a.jsonl --plan --train.batch=8 --train.accumulate=2 --train.block=120; echo $?
nice -n 10 $R config check configs/sft_alpaca.toml; echo $?
nice -n 10 $R retrofit $T/dense --out $T/z; echo $?
nice -n 10 $R upcycle --help | head -30
nice -n 10 $R list configs | grep sft
rm -rf $T
