#!/bin/sh
# A shell script as a program. From the root:
#
# python run.py experiments/examples/anneal.sh --space experiments/examples/anneal.json \
#     --metric loss --mode min --trials 30
while [ $# -gt 0 ]; do
    case $1 in
        --rate) rate=$2 ;;
        --start) start=$2 ;;
        --epochs) epochs=$2 ;;
    esac
    shift 2
done
awk -v rate="$rate" -v x="$start" -v epochs="$epochs" 'BEGIN {
    for (epoch = 1; epoch <= epochs; epoch++) {
        x -= rate * 2 * (x - 3)
        printf "[tune-metric]: {\"epoch\": %d, \"loss\": %.9g}\n", epoch, (x - 3) ^ 2
        fflush()
    }
}'
