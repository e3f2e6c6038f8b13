// The panels of a dashboard, by Grafana's own components, with what draw_dashboard.py has asked Prometheus for.
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import {
  DataFrame,
  FieldConfigOptionsRegistry,
  FieldType,
  ThemeContext,
  applyFieldOverrides,
  createTheme,
  dateTime,
  getDisplayProcessor,
  reduceField,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';

const { dashboard, results, from, to, width: WIDTH } = (window as any).INPUT;
const CELL = 38; // pixels: Grafana's height of a row of the grid, and the gap between panels
const GAP = 8;

const theme = createTheme({ colors: { mode: 'light' } });
const range: any = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
range.raw = { from: range.from, to: range.to };

standardTransformersRegistry.setInit(() =>
  [standardTransformers.organizeFieldsTransformer, standardTransformers.sortByTransformer].map(
    (one: any) => ({ id: one.id, name: one.name, transformation: one }) as any
  )
);

function legend(format: string, labels: Record<string, string>): string {
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
}

// What Grafana's data source of Prometheus makes of an answer.
function frames(panel: any): DataFrame[] {
  const found: DataFrame[] = [];
  panel.targets.forEach((target: any, number: number) => {
    const answer: any[] = results[panel.id][number];
    if (target.format === 'table') {
      const labels = [...new Set(answer.flatMap((one) => Object.keys(one.metric)))].sort();
      const fields = [
        { name: 'Time', type: FieldType.time, values: answer.map((one) => one.value[0] * 1000) },
        ...labels.map((name) => ({ name, type: FieldType.string, values: answer.map((one) => one.metric[name] ?? '') })),
        { name: 'Value', type: FieldType.number, values: answer.map((one) => Number(one.value[1])) },
      ];
      if (answer.length) {
        found.push(toDataFrame({ refId: target.refId, fields }));
      }
      return;
    }
    for (const series of answer) {
      const values: Array<[number, string]> = series.values ?? [series.value];
      const name = legend(target.legendFormat, series.metric) || undefined;
      const fields = [
        { name: 'Time', type: FieldType.time, values: values.map(([time]) => time * 1000) },
        {
          name: 'Value',
          type: FieldType.number,
          labels: series.metric,
          values: values.map(([, value]) => Number(value)),
          config: { displayNameFromDS: name },
        },
      ];
      found.push(toDataFrame({ refId: target.refId, name, fields }));
    }
  });
  return found;
}

// All options that the panel has set. Grafana's own list of those that there are is a part of its server.
function options({ defaults, overrides }: any): FieldConfigOptionsRegistry {
  const ids = new Set<string>(overrides.flatMap((one: any) => one.properties.map((property: any) => property.id)));
  Object.keys(defaults).forEach((id) => id !== 'custom' && ids.add(id));
  Object.keys(defaults.custom ?? {}).forEach((id) => ids.add(`custom.${id}`));
  return new FieldConfigOptionsRegistry(() =>
    [...ids].map((id) => {
      const isCustom = id.startsWith('custom.');
      // The first step of the thresholds has no value, as JSON has no infinity.
      const process = (value: any) =>
        id === 'thresholds' ? { ...value, steps: [{ ...value.steps[0], value: -Infinity }, ...value.steps.slice(1)] } : value;
      return { id, path: id.replace('custom.', ''), name: id, isCustom, process, shouldApply: () => true } as any;
    })
  );
}

function Inside({ panel, width, height }: { panel: any; width: number; height: number }) {
  const [data, setData] = useState<DataFrame[] | null>(null);
  useEffect(() => {
    const transformed = transformDataFrame(panel.transformations ?? [], frames(panel)).subscribe((found) =>
      setData(
        applyFieldOverrides({
          data: found,
          fieldConfig: panel.fieldConfig,
          fieldConfigRegistry: options(panel.fieldConfig),
          replaceVariables: (text) => text,
          theme,
          timeZone: 'utc',
        })
      )
    );
    return () => transformed.unsubscribe();
  }, []);
  useEffect(() => {
    if (data) {
      console.info(`panel ${panel.id} is drawn`); // which draw_dashboard.py waits for
    }
  }, [data]);
  if (!data) {
    return null;
  }
  if (!data.length) {
    return <div style={{ color: theme.colors.text.secondary, textAlign: 'center' }}>No data</div>;
  }
  const size = { width, height };
  if (panel.type === 'stat') {
    const field = data[0].fields.find((one) => one.type === FieldType.number)!;
    const { reduceOptions, colorMode, graphMode, textMode } = panel.options;
    const [calc] = reduceOptions.calcs;
    const value = getDisplayProcessor({ field, theme })(reduceField({ field, reducers: [calc] })[calc]);
    return <BigValue value={value} theme={theme} {...{ colorMode, graphMode, textMode }} {...size} />;
  }
  if (panel.type === 'table') {
    return <Table data={data[0]} {...size} />;
  }
  return <TimeSeries frames={data} timeRange={range} timeZone="utc" legend={panel.options.legend} {...size} />;
}

function Dashboard() {
  const column = WIDTH / 24;
  return (
    <div style={{ position: 'relative', height: '100vh', background: theme.colors.background.canvas }}>
      {dashboard.panels.map((panel: any) => {
        const { x, y, w, h } = panel.gridPos;
        return (
          <div key={panel.id} style={{ position: 'absolute', left: x * column + GAP / 2, top: y * CELL + GAP / 2 }}>
            <PanelChrome
              title={panel.title}
              description={panel.description || undefined}
              width={w * column - GAP}
              height={h * CELL - GAP}
            >
              {(width: number, height: number) => <Inside panel={panel} width={width} height={height} />}
            </PanelChrome>
          </div>
        );
      })}
    </div>
  );
}

createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles hackNoBackdropBlur={true} isExtensionSidebarOpen={false} />
    <Dashboard />
  </ThemeContext.Provider>
);
