// Colours: the series keep apart for colour-blind readers (after Okabe and Ito), darkened or lightened until text in
// them has a contrast of 4.5 on the page; heat levels go from the page's own shade to one strong violet, so that they
// are not taken for a series.
#include "rmoe/plot/style.h"

#include <array>
#include <cmath>
#include <cstdio>

#include "rmoe/plot/plot.h"

namespace rmoe::plot {
namespace {

using Rgb = std::array<int, 3>;

std::string heat_levels(const Rgb& pale, const Rgb& middle, const Rgb& strong) {
  std::string css;
  for (int level = 0; level < kHeatLevels; ++level) {
    double at = 2.0 * level / (kHeatLevels - 1);
    const Rgb& from = at < 1 ? pale : middle;
    const Rgb& to = at < 1 ? middle : strong;
    double share = at < 1 ? at : at - 1;
    auto mix = [&](size_t i) { return static_cast<int>(std::lround(from[i] + (to[i] - from[i]) * share)); };
    char text[40];
    std::snprintf(text, sizeof text, "--h%d:#%02x%02x%02x;", level, mix(0), mix(1), mix(2));
    css += text;
  }
  return css;
}

constexpr const char* kLight =
    "--page:#ffffff;--card:#f5f6f7;--ink:#1b1e22;--faint:#5c646d;--grid:#e7e9ec;--rule:#cfd4d9;--note:#8a5a00;"
    "--c0:#0067a3;--c1:#bf4f00;--c2:#007a58;--c3:#a03c78;--c4:#8a6100;--c5:#4f565e;--c6:#5b4bc4;--c7:#7d4a26;";
constexpr const char* kDark =
    "--page:#15181b;--card:#1d2125;--ink:#e4e7ea;--faint:#9ba4ae;--grid:#292e34;--rule:#3a4149;--note:#e3b35a;"
    "--c0:#5ab4ea;--c1:#f59a52;--c2:#45c99d;--c3:#e294c4;--c4:#e2bd4e;--c5:#b6bec7;--c6:#a79bf2;--c7:#cda07c;";

constexpr const char* kRules = R"css(
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px clamp(16px,4vw,40px) 56px}
h1{font-size:28px;line-height:1.2;font-weight:650;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:19px;font-weight:650;margin:48px 0 14px}
h3{font-size:15px;font-weight:600;margin:0 0 6px;overflow-wrap:anywhere}
p{margin:0 0 10px;max-width:70ch}
p,figcaption{text-wrap:pretty}
.lead{max-width:none;color:var(--faint);margin-bottom:28px;overflow-wrap:anywhere}
.numbers .small{max-width:62ch}
.small,figcaption{font-size:14px;color:var(--faint)}
.finding{font-size:17px;max-width:none;overflow-wrap:anywhere}
.finding strong{font-weight:650}
.finding span{display:block;font-size:15px;color:var(--faint);font-variant-numeric:tabular-nums}
.warning{border-left:3px solid var(--note);padding:1px 0 1px 12px;margin:0 0 10px;font-size:15px;overflow-wrap:anywhere;max-width:90ch}
.scroll{overflow-x:auto;margin-bottom:10px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:15px}
th,td{padding:5px 0;text-align:left;font-weight:400;border-top:1px solid var(--grid)}
thead th{border-top:0;vertical-align:bottom;font-weight:600}
thead td{border-top:0}
thead th.n{text-align:right;padding-left:26px;overflow-wrap:break-word}
table.rows thead th{font-weight:400;color:var(--faint);font-size:14px;line-height:1.3;max-width:120px}
tbody th{position:sticky;left:0;background:var(--page)}
table.rows tbody th{padding-left:17px;text-indent:-17px}
.scroll+.scroll{margin-top:28px}
thead th span{display:inline-block;border-bottom:3px solid;padding-bottom:3px}
tbody th{padding-right:12px}
td.n{text-align:right;padding-left:26px;white-space:nowrap}
td.d{color:var(--faint);padding-left:6px;white-space:nowrap}
tr.part>*{border-top-color:var(--rule)}
tr.key>*{font-weight:650}
tr.key td.d{font-weight:400}
.results{display:flex;flex-wrap:wrap;gap:28px 48px;align-items:flex-start}
.numbers{min-width:0;max-width:100%}
.results figure{flex:1 1 320px;max-width:400px;padding-top:4px}
table.config th+th,table.config td{padding-left:28px}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:36px 44px}
figure{margin:0;min-width:0;max-width:520px}
figcaption{margin-top:4px}
svg.plot{display:block;width:100%;height:auto;overflow:visible}
svg.plot text{stroke:var(--page);stroke-width:3px;stroke-linejoin:round;paint-order:stroke;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
.scale{display:flex;align-items:center;gap:8px;font-size:14px;color:var(--faint);margin:0 0 20px;flex-wrap:wrap}
.scale i{display:inline-flex;border-radius:2px;overflow:hidden}
.scale b{display:block;width:16px;height:12px}
pre{margin:0;font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.box{background:var(--card);border-radius:6px;padding:12px 14px;max-height:20em;overflow:auto}
details{margin-bottom:10px}
summary{cursor:pointer;font-size:14px;color:var(--faint);margin-bottom:4px}
.mark{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0 0 16px;font-size:15px}
dt{color:var(--faint)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:560px){
main{padding-top:24px}
h1{font-size:23px}
h2{margin-top:38px}
table{font-size:13.5px}
thead th.n,td.n{padding-left:14px}
td.d{padding-left:4px}
.plots svg.plot text{font-size:13px}
table.rows tbody th{min-width:110px}
dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:8px}
}
)css";

std::string light_variables() { return kLight + heat_levels({240, 241, 244}, {150, 135, 190}, {52, 28, 100}); }

}  // namespace

std::string light_colour(const std::string& name) {
  static const std::string variables = light_variables();
  const std::string key = "--" + name + ":#";
  const size_t at = variables.find(key);
  return at == std::string::npos ? "" : variables.substr(at + key.size() - 1, 7);
}

std::string report_css() {
  std::string light = light_variables();
  std::string dark = kDark + heat_levels({32, 36, 41}, {104, 88, 156}, {222, 208, 255});
  return ":root{color-scheme:light dark;" + light + "}\n@media(prefers-color-scheme:dark){:root{" + dark + "}}" +
         kRules;
}

}  // namespace rmoe::plot
