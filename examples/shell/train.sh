# A "training" of so many steps in a language without any library of ours; it reports a loss at each.
steps=$1
step=0
while [ "$step" -lt "$steps" ]; do
    step=$((step + 1))
    sleep 0.1
    phalanx report --step "$step" "loss=$((1000 / step))"
done
echo "done after $step steps"
